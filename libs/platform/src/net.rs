//! Dialling out and listening, as arguments.
//!
//! Owns: the only TCP sockets in the tree. Never: TLS, names of endpoints, retries.

use std::{fmt::Debug, future::Future, io, net::SocketAddr, pin::Pin};

use tokio::io::{AsyncRead, AsyncWrite};

/// A connected byte stream.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A boxed future of a network call.
pub type NetFuture<'a, T> = Pin<Box<dyn Future<Output = io::Result<T>> + Send + 'a>>;

/// Opens connections.
pub trait Dialer: Send + Sync + Debug {
    /// Connects to `host:port`.
    fn dial<'a>(&'a self, host: &'a str, port: u16) -> NetFuture<'a, Box<dyn Stream>>;
}

/// Accepts connections.
pub trait Listener: Send + Sync + Debug {
    /// The next connection and its peer.
    fn accept(&self) -> NetFuture<'_, (Box<dyn Stream>, SocketAddr)>;
    /// Where it listens.
    fn local_addr(&self) -> io::Result<SocketAddr>;
}

/// TCP through the operating system.
#[derive(Debug, Default, Clone, Copy)]
pub struct TcpDialer;

impl Dialer for TcpDialer {
    #[expect(clippy::disallowed_methods, reason = "this is the dialer's real implementation")]
    fn dial<'a>(&'a self, host: &'a str, port: u16) -> NetFuture<'a, Box<dyn Stream>> {
        Box::pin(async move {
            let stream = tokio::net::TcpStream::connect((host, port)).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as Box<dyn Stream>)
        })
    }
}

/// A TCP listener.
#[derive(Debug)]
pub struct TcpAcceptor(tokio::net::TcpListener);

impl TcpAcceptor {
    /// Binds to `addr`; port 0 picks a free one.
    #[expect(clippy::disallowed_methods, reason = "this is the listener's real implementation")]
    pub async fn bind(addr: SocketAddr) -> io::Result<Self> {
        Ok(Self(tokio::net::TcpListener::bind(addr).await?))
    }
}

impl Listener for TcpAcceptor {
    fn accept(&self) -> NetFuture<'_, (Box<dyn Stream>, SocketAddr)> {
        Box::pin(async move {
            let (stream, peer) = self.0.accept().await?;
            stream.set_nodelay(true)?;
            Ok((Box::new(stream) as Box<dyn Stream>, peer))
        })
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}
