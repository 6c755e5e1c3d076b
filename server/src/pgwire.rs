//! PostgreSQL's wire protocol, for psql, Grafana and BI tools: read only, TLS only.
//!
//! Owns: the accept loop of its port and how many connections it has. What is asked goes through
//! the query engine, as over HTTP. Never: a way without TLS; a statement that writes.

mod cancel;
mod connection;
mod message;
mod param;
mod refusal;
mod script;
mod session;
mod value;

use std::{sync::Arc, time::Duration};

use millrace_platform::{entropy::Entropy, net::Listener};
use rustls::ServerConfig;
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;

use self::cancel::Connections;
use crate::api::State;

/// Connections at once.
const CONNECTIONS_MAX: usize = 256;

/// The listener's TLS configuration for this protocol's name.
pub fn tls(of: &ServerConfig) -> Arc<ServerConfig> {
    let mut config = of.clone();
    config.alpn_protocols = vec![b"postgresql".to_vec()];
    Arc::new(config)
}

/// Serves until `stop` turns true. Statements that run then are cut off with the process.
pub async fn serve(
    listener: Box<dyn Listener>,
    tls: Arc<ServerConfig>,
    state: Arc<State>,
    entropy: Arc<dyn Entropy>,
    mut stop: watch::Receiver<bool>,
) {
    let connections = Arc::new(Connections::new(entropy));
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let acceptor = TlsAcceptor::from(tls);
    loop {
        let slot = tokio::select! {
            slot = Arc::clone(&slots).acquire_owned() => slot,
            _ = stop.wait_for(|stop| *stop) => return,
        };
        let Ok(slot) = slot else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.wait_for(|stop| *stop) => return,
        };
        let (stream, _address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a PostgreSQL connection could not be accepted");
                state.clock.sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let (acceptor, state) = (acceptor.clone(), Arc::clone(&state));
        let (connections, mut stop) = (Arc::clone(&connections), stop.clone());
        tokio::spawn(async move {
            let _slot = slot;
            tokio::select! {
                () = connection::serve(stream, acceptor, state, connections) => {}
                _ = stop.wait_for(|stop| *stop) => {}
            }
        });
    }
}
