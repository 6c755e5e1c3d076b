//! A network in memory: listeners by port, byte pipes between ends, cuts on command.
//!
//! Fault model: `partition` breaks every open connection (both ends see a reset at their next
//! read or write) and refuses new ones until `heal`. Bytes are neither lost nor reordered inside
//! a live connection, as TCP promises.

use std::{
    collections::BTreeMap,
    io,
    net::{Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf},
    sync::{Mutex as AsyncMutex, mpsc},
};

use crate::net::{Dialer, Listener, NetFuture, Stream};

/// Bytes that one direction of a connection buffers before the writer waits.
const PIPE_BYTES: usize = 256 * 1024;
/// Connections that wait to be accepted on one port.
const BACKLOG: usize = 64;

#[derive(Debug, Default)]
struct State {
    ports: BTreeMap<u16, mpsc::Sender<DuplexStream>>,
    partitioned: bool,
    generation: u64,
}

/// A simulated network; clones are handles on the same one.
#[derive(Debug, Clone, Default)]
pub struct SimNet(Arc<Mutex<State>>);

#[derive(Debug)]
struct SimStream {
    pipe: DuplexStream,
    net: SimNet,
    generation: u64,
}

#[derive(Debug)]
struct SimListener {
    port: u16,
    incoming: AsyncMutex<mpsc::Receiver<DuplexStream>>,
    net: SimNet,
}

impl SimNet {
    /// A network with nobody on it.
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts to listen on `port`, replacing whoever listened there.
    pub fn listen(&self, port: u16) -> Box<dyn Listener> {
        let (tx, rx) = mpsc::channel(BACKLOG);
        self.lock().ports.insert(port, tx);
        Box::new(SimListener { port, incoming: AsyncMutex::new(rx), net: self.clone() })
    }

    /// Breaks every connection and refuses new ones until [`Self::heal`].
    pub fn partition(&self) {
        let mut state = self.lock();
        state.partitioned = true;
        state.generation += 1;
    }

    /// Ends a partition; broken connections stay broken.
    pub fn heal(&self) {
        self.lock().partitioned = false;
    }

    fn wrap(&self, pipe: DuplexStream) -> Box<dyn Stream> {
        let generation = self.lock().generation;
        Box::new(SimStream { pipe, net: self.clone(), generation })
    }
}

impl SimStream {
    fn check(&self) -> io::Result<()> {
        if self.net.lock().generation == self.generation {
            Ok(())
        } else {
            Err(io::ErrorKind::ConnectionReset.into())
        }
    }
}

impl AsyncRead for SimStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check()?;
        Pin::new(&mut self.pipe).poll_read(cx, buf)
    }
}

impl AsyncWrite for SimStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check()?;
        Pin::new(&mut self.pipe).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        Pin::new(&mut self.pipe).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_shutdown(cx)
    }
}

impl Dialer for SimNet {
    fn dial<'a>(&'a self, _host: &'a str, port: u16) -> NetFuture<'a, Box<dyn Stream>> {
        Box::pin(async move {
            let sender = {
                let state = self.lock();
                if state.partitioned {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                state.ports.get(&port).cloned().ok_or(io::ErrorKind::ConnectionRefused)?
            };
            let (near, far) = tokio::io::duplex(PIPE_BYTES);
            sender
                .send(far)
                .await
                .map_err(|_| io::Error::from(io::ErrorKind::ConnectionRefused))?;
            Ok(self.wrap(near))
        })
    }
}

impl Listener for SimListener {
    fn accept(&self) -> NetFuture<'_, (Box<dyn Stream>, SocketAddr)> {
        Box::pin(async move {
            let pipe = self.incoming.lock().await.recv().await;
            let pipe = pipe.ok_or(io::ErrorKind::BrokenPipe)?;
            Ok((self.net.wrap(pipe), SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))))
        })
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, self.port)))
    }
}
