//! A connection's beginning: TLS, who it is, what it is told.
//!
//! Owns: the order. TLS first, without which nothing but a cancel request is read; then the
//! start-up message; then the token as password, inside TLS only.
//! Never: answers bytes that are no protocol; takes bytes that came before TLS for what came
//! inside; says whether a token exists, has another scope, or is somebody's.

use std::{sync::Arc, time::Duration};

use bytes::{Buf, BufMut, Bytes};
use millrace_control::policy;
use millrace_platform::net::Stream;
use millrace_query::postgres;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::{
    cancel::Connections,
    message::{self, Broken, CANCEL, GSS, MAJOR, Out, SSL, put_text},
    refusal::{Reach, Refusal},
    session::{Session, Who},
};
use crate::api::State;

/// Time until the token is shown.
const BEGINNING: Duration = Duration::from_secs(10);
/// First byte of a TLS handshake.
const TLS_HANDSHAKE: u8 = 0x16;

type Raw = BufReader<Box<dyn Stream>>;
type Secure = BufReader<TlsStream<Raw>>;

/// Serves one connection to its end.
pub(super) async fn serve(
    stream: Box<dyn Stream>,
    tls: TlsAcceptor,
    state: Arc<State>,
    connections: Arc<Connections>,
) {
    let clock = Arc::clone(&state.clock);
    let begun = tokio::select! {
        begun = begin(stream, tls, state, connections) => begun,
        () = clock.sleep(BEGINNING) => return,
    };
    match begun {
        Ok(Some((who, stream, told))) => {
            let (from, mut to) = tokio::io::split(stream);
            if to.write_all(&told.buffer).await.is_ok() {
                Session::new(who, BufReader::new(from), to).serve().await;
            }
        }
        Ok(None) => {}
        Err(error) => tracing::debug!(%error, "a PostgreSQL connection ended early"),
    }
}

type Begun = (Who, Secure, Out);

async fn begin(
    stream: Box<dyn Stream>,
    tls: TlsAcceptor,
    state: Arc<State>,
    connections: Arc<Connections>,
) -> Result<Option<Begun>, Broken> {
    let Some(stream) = secure(BufReader::new(stream), &tls, &connections).await? else {
        return Ok(None);
    };
    let mut stream = BufReader::new(stream);
    let (code, body) = message::first(&mut stream).await?;
    if code == CANCEL {
        cancel(&connections, body);
        return Ok(None);
    }
    if code >> 16 != MAJOR {
        return refuse(&mut stream, Refusal::new("08P01", "protocol 3.0 is spoken here")).await;
    }
    let startup = message::startup(body)?;
    if code & 0xffff != 0 {
        negotiate(&mut stream, &startup).await?;
    }
    let named = |name: &str| {
        let found = startup.iter().find(|(n, _)| n == name);
        found.map(|(_, value)| value.clone()).filter(|v| !v.is_empty())
    };
    let user = named("user").unwrap_or_else(|| "millrace".to_owned());
    let database = match crate::api::database(named("database")) {
        Ok(database) => database,
        Err(p) => return refuse(&mut stream, Refusal::new("3D000", p.detail)).await,
    };
    // The password in clear, inside TLS (docs/decisions says why no SCRAM).
    stream.write_all(&[b'R', 0, 0, 0, 8, 0, 0, 0, 3]).await?;
    stream.flush().await?;
    let password = message::password(&mut stream).await?;
    let principal = state.catalog.authenticate(&password);
    let scoped = principal.and_then(|p| Some((policy::to_read(&p).ok()?, p)));
    let Some((scope, principal)) = scoped else {
        let text = "the password is not a token with scope `read`";
        return refuse(&mut stream, Refusal::new("28P01", text)).await;
    };
    let place = connections.enter();
    let who = Who { state, principal, scope, user, database, place };
    let told = welcome(&who, named("application_name").as_deref());
    Ok(Some((who, stream, told)))
}

/// Up to TLS; `None` if the connection has done what it came for.
async fn secure(
    mut stream: Raw,
    tls: &TlsAcceptor,
    connections: &Connections,
) -> Result<Option<TlsStream<Raw>>, Broken> {
    // Once for each thing that a client may ask for before.
    for _ in 0..3 {
        if stream.fill_buf().await?.first() == Some(&TLS_HANDSHAKE) {
            return Ok(Some(tls.accept(stream).await?));
        }
        match message::first(&mut stream).await? {
            (CANCEL, body) => {
                cancel(connections, body);
                return Ok(None);
            }
            (GSS, _) => stream.write_all(b"N").await?,
            (SSL, _) => {
                // Bytes behind the request were not said inside TLS, whoever says so.
                if !stream.buffer().is_empty() {
                    return Err(Broken::Protocol("bytes came before TLS"));
                }
                stream.write_all(b"S").await?;
                stream.flush().await?;
                return Ok(Some(tls.accept(stream).await?));
            }
            (code, _) if code >> 16 == MAJOR => {
                let text = "TLS is needed: connect with sslmode=verify-full, or sslmode=require";
                refuse::<()>(&mut stream, Refusal::new("28000", text)).await?;
                return Ok(None);
            }
            _ => return Err(Broken::Protocol("the first message has an unknown code")),
        }
        stream.flush().await?;
    }
    Err(Broken::Protocol("TLS was not asked for"))
}

fn cancel(connections: &Connections, mut body: Bytes) {
    if let Ok(pid) = body.try_get_i32() {
        connections.cancel(pid, &body);
    }
}

async fn refuse<T>(
    stream: &mut (impl AsyncWriteExt + Unpin),
    refusal: Refusal,
) -> Result<Option<T>, Broken> {
    let mut out = Out::default();
    refusal.put(&mut out, Reach::Fatal);
    stream.write_all(&out.buffer).await?;
    stream.shutdown().await?;
    Ok(None)
}

/// A newer minor version: 3.0 is offered, and none of its options.
async fn negotiate(stream: &mut Secure, startup: &[(String, String)]) -> Result<(), Broken> {
    let options: Vec<&str> =
        startup.iter().map(|(n, _)| n.as_str()).filter(|n| n.starts_with("_pq_.")).collect();
    let mut out = Out::default();
    out.message(b'v', |out| {
        out.put_u32(MAJOR << 16);
        out.put_u32(options.len() as u32);
        options.iter().for_each(|o| put_text(out, o));
    });
    Ok(stream.write_all(&out.buffer).await?)
}

/// What a client is told before its first question.
fn welcome(who: &Who, application: Option<&str>) -> Out {
    let mut out = Out::default();
    out.message(b'R', |out| out.put_u32(0));
    for (name, value) in [
        ("server_version", postgres::SERVER_VERSION),
        ("server_encoding", "UTF8"),
        ("client_encoding", "UTF8"),
        ("DateStyle", "ISO, MDY"),
        ("IntervalStyle", "postgres"),
        ("TimeZone", "UTC"),
        ("integer_datetimes", "on"),
        ("standard_conforming_strings", "on"),
        ("default_transaction_read_only", "on"),
        ("is_superuser", "off"),
        ("session_authorization", &who.user),
        ("application_name", application.unwrap_or_default()),
    ] {
        out.parameter(name, value);
    }
    out.message(b'K', |out| {
        out.put_i32(who.place.pid);
        out.put_slice(&who.place.secret);
    });
    out
}
