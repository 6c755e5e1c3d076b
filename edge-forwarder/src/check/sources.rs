//! A look at each source, as `run` would ask it.

use std::sync::Arc;

use millrace_platform::disk::{OpenMode, RealDisk};

use super::{Disk, Finding, Ground, PATIENCE};
use crate::source::{
    SourceKind,
    http::Http,
    mqtt::{
        client::{Client, Dial},
        codec::{Connect, Version},
    },
    mtconnect::{
        Agent,
        document::{self, Document},
    },
    peer::{self, Peer},
};

/// A source's finding.
pub(super) async fn look(ground: &Ground, kind: &SourceKind) -> Finding {
    let name = kind.name();
    let look = async {
        match kind {
            SourceKind::HostMetrics => Ok("this machine".to_owned()),
            SourceKind::Stdin => Ok("standard input".to_owned()),
            SourceKind::Tail(path) => tail(path),
            SourceKind::Modbus(device) => {
                let place = format!("{}:{}", device.host, device.port);
                match ground.dialer.dial(&device.host, device.port).await {
                    Ok(_) => Ok(format!("{place} takes connections; registers were not asked")),
                    Err(e) => Err((format!("{place}: {e}"), NETWORK)),
                }
            }
            SourceKind::Mqtt(b) => {
                let who = (b.user.clone(), b.password_file.as_deref());
                broker(ground, &b.peer, b.version, who).await
            }
            SourceKind::Sparkplug(h) => {
                let who = (h.user.clone(), h.password_file.as_deref());
                broker(ground, &h.peer, h.version, who).await
            }
            SourceKind::MtConnect(a) => agent(ground, a).await,
        }
    };
    let done = tokio::select! {
        done = look => done,
        () = ground.clock.sleep(PATIENCE) => {
            Err((format!("no answer within {} s", PATIENCE.as_secs()), NETWORK))
        }
    };
    match done {
        Ok(said) => Finding::fine(&name, said),
        Err((said, advice)) => Finding::wrong(&name, said, advice),
    }
}

type Looked = Result<String, (String, &'static str)>;

const NETWORK: &str = "is it switched on, is the address right, is it on this network?";

fn tail(path: &std::path::Path) -> Looked {
    let shown = path.display();
    let disk = RealDisk;
    if !disk.exists(path).unwrap_or(false) {
        return Err((format!("{shown} is not there"), "it is waited for; is the path right?"));
    }
    match disk.open(path, OpenMode::Read) {
        Ok(_) => Ok(format!("{shown} can be read")),
        Err(e) => Err((format!("{shown}: {e}"), "let the forwarder's user read it and its folder")),
    }
}

async fn broker(
    ground: &Ground,
    at: &Peer,
    version: Version,
    (user, password_file): (Option<String>, Option<&std::path::Path>),
) -> Looked {
    let place = format!("{}:{}", at.host, at.port);
    let password = match password_file {
        Some(path) => match peer::secret(path).await {
            Ok(secret) => Some(secret),
            Err(e) => return Err((e.to_string(), "let the forwarder's user read it")),
        },
        None => None,
    };
    let dial = Dial {
        peer: at.clone(),
        dialer: Arc::clone(&ground.dialer),
        clock: Arc::clone(&ground.clock),
        message_max: 1 << 16,
    };
    // Another name and a session of its own: the running source keeps its connection.
    let connect = Connect {
        version,
        client_id: format!("millrace-check-{}", std::process::id()),
        clean: true,
        keep_alive_s: 30,
        session_expiry_s: 0,
        receive_max: 1,
        packet_max: 1 << 16,
        user,
        password,
        will: None,
    };
    match Client::connect(&dial, &connect).await {
        Ok((client, _)) => {
            client.disconnect().await;
            let way = if at.tls.is_some() { "TLS" } else { "plaintext" };
            Ok(format!("{place} lets us in ({way}); topics were not asked"))
        }
        Err(e) => Err((format!("{place}: {e}"), "look at url, ca, user and password_file")),
    }
}

async fn agent(ground: &Ground, agent: &Agent) -> Looked {
    let place = format!("{}:{}", agent.peer.host, agent.peer.port);
    let http = Http {
        peer: agent.peer.clone(),
        dialer: Arc::clone(&ground.dialer),
        clock: Arc::clone(&ground.clock),
    };
    let device = agent.device.as_ref().map(|d| format!("/{d}")).unwrap_or_default();
    let bytes = match http.get(&format!("{device}/probe"), PATIENCE).await {
        Ok(answer) => answer.whole(agent.document_max, PATIENCE).await,
        Err(e) => Err(e),
    };
    let bytes = bytes.map_err(|e| (format!("{place}: {e}"), NETWORK))?;
    let url = "is this the agent's URL, and `device` one of its devices?";
    match document::read(&bytes) {
        Ok(Document::Devices(header, units)) => {
            let version = &header.version;
            Ok(format!("{place} is an agent, version {version}, {} items with units", units.len()))
        }
        Ok(_) => Err((format!("{place} is an agent, but does not say its devices"), url)),
        Err(e) => Err((format!("{place}: {e}"), url)),
    }
}
