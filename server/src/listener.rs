//! The accept loop: TCP, TLS, HTTP/1.1 or HTTP/2, one router.
//!
//! Owns: connection limits and graceful end. Never: speaks in the clear: bytes that are not TLS
//! are dropped without an answer.

use std::{sync::Arc, time::Duration};

use axum::{Extension, Router};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use millrace_platform::{clock::Clock, net::Listener};
use millrace_protocol::ids::DeviceId;
use rustls::ServerConfig;
use tokio::{
    io::BufReader,
    sync::{Semaphore, watch},
};
use tokio_rustls::TlsAcceptor;

/// Connections at once.
const CONNECTIONS_MAX: usize = 4096;
/// Time for a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Time for the head of a request.
const HEAD: Duration = Duration::from_secs(10);
/// Bytes of a request's headers.
const HEADER_BYTES_MAX: u32 = 16 * 1024;
/// Bytes taken off a socket at once. TLS itself would ask for 4 KiB at a time, which is four system
/// calls and as many window updates per record.
const READ_BYTES: usize = 32 * 1024;
/// Streams of one HTTP/2 connection.
const STREAMS_MAX: u32 = 100;
/// Time that open requests have to end after the stop signal.
const DRAIN: Duration = Duration::from_secs(10);

/// The device that a connection's verified client certificate names, with its serial number.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub Option<(DeviceId, u64)>);

/// Serves until `stop` turns true, then lets open requests end.
pub async fn serve(
    listener: Box<dyn Listener>,
    tls: Arc<ServerConfig>,
    router: Router,
    clock: Arc<dyn Clock>,
    mut stop: watch::Receiver<bool>,
) {
    let acceptor = TlsAcceptor::from(tls);
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(64 * 1024);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_pending_accept_reset_streams(Some(20))
        .max_header_list_size(HEADER_BYTES_MAX)
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .keep_alive_interval(Some(Duration::from_secs(30)));
    let builder = Arc::new(builder);
    let graceful = GracefulShutdown::new();
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { break };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.wait_for(|stop| *stop) => break,
        };
        let (stream, _address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                clock.sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let stream = BufReader::with_capacity(READ_BYTES, stream);
        let (acceptor, router, clock) = (acceptor.clone(), router.clone(), Arc::clone(&clock));
        let (builder, watcher) = (Arc::clone(&builder), graceful.watcher());
        tokio::spawn(async move {
            let _slot = slot;
            let handshake = tokio::select! {
                done = acceptor.accept(stream) => done,
                () = clock.sleep(HANDSHAKE) => return,
            };
            let Ok(stream) = handshake else { return };
            let certificate = stream.get_ref().1.peer_certificates().and_then(|c| c.first());
            let peer = Peer(certificate.and_then(|c| millrace_control::device::identify(c)));
            let service = TowerToHyperService::new(router.layer(Extension(peer)));
            let connection = builder.serve_connection(TokioIo::new(stream), service).into_owned();
            if let Err(error) = watcher.watch(connection).await {
                tracing::debug!(%error, "a connection ended early");
            }
        });
    }
    tokio::select! {
        () = graceful.shutdown() => {}
        () = clock.sleep(DRAIN) => tracing::warn!("some requests did not end in time"),
    }
}
