//! A stranger: a peer that reaches a broker's port and speaks to it byte by byte, by default without a certificate.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use postern_pki::Fingerprint;
use postern_pki::credentials::Credentials;
use postern_pki::tls::{client_config, pinned_client_config};
use postern_proto::client::channel;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;
use tonic::transport::Channel;

use crate::broker::{Broker, PORT};
use crate::net::Host;
use crate::netns::Netns;

/// The types of HTTP/2 frames that tests send or look for (RFC 9113, section 6).
pub mod kind {
    /// DATA.
    pub const DATA: u8 = 0;
    /// HEADERS.
    pub const HEADERS: u8 = 1;
    /// Advice on a stream's priority, which servers ignore (RFC 9113, section 5.3.2).
    pub const PRIORITY: u8 = 2;
    /// RST_STREAM.
    pub const RESET: u8 = 3;
    /// SETTINGS.
    pub const SETTINGS: u8 = 4;
    /// PING.
    pub const PING: u8 = 6;
    /// GOAWAY.
    pub const GOAWAY: u8 = 7;
    /// CONTINUATION.
    pub const CONTINUATION: u8 = 9;
}

/// The flag END_STREAM of DATA and HEADERS, and ACK of SETTINGS and PING.
pub const END_STREAM: u8 = 1;
/// The flag END_HEADERS of HEADERS and CONTINUATION.
pub const END_HEADERS: u8 = 4;
/// The first bytes of a client's HTTP/2 connection.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The path of the streaming health check.
pub const WATCH: &str = "/grpc.health.v1.Health/Watch";
/// The path of an enrolment.
pub const ENROLL: &str = "/postern.v1.AgentService/Enroll";

/// A peer on one host.
#[derive(Debug, Clone)]
pub struct Stranger {
    netns: Netns,
    broker: SocketAddr,
    tls: Arc<ClientConfig>,
    from: Option<IpAddr>,
}

/// A frame as it was received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The type; see [`kind`].
    pub kind: u8,
    /// The flags.
    pub flags: u8,
    /// The stream, 0 for the connection.
    pub stream: u32,
    /// The payload.
    pub payload: Vec<u8>,
}

/// An HTTP/2 connection that a test leads frame by frame.
#[derive(Debug)]
pub struct Frames {
    io: TlsStream<TcpStream>,
}

impl Stranger {
    /// A peer on `host` without a certificate.
    ///
    /// # Panics
    /// The broker's authority cannot be read.
    pub fn new(broker: &Broker, from: &Host, at: &Host) -> Self {
        let known = Credentials::load(&broker.admin_identity()).expect("the broker was initialised");
        let root = known.roots().first().expect("an authority has a root");
        let tls = pinned_client_config(Fingerprint::of(root)).expect("a fingerprint can be pinned");
        Self { netns: from.netns().clone(), broker: (at.v4(), PORT).into(), tls, from: None }
    }

    /// The same peer with the certificate in a directory.
    ///
    /// # Panics
    /// The identity cannot be used.
    #[must_use]
    pub fn known_by(mut self, identity: &Path) -> Self {
        let credentials = Credentials::load(identity).expect("the identity can be loaded");
        self.tls = client_config(&credentials).expect("the identity can be used");
        self
    }

    /// Returns the same peer, at another address of its host.
    #[must_use]
    pub fn from_address(mut self, address: impl Into<IpAddr>) -> Self {
        self.from = Some(address.into());
        self
    }

    /// The namespace in which the peer makes its connections.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Connects, and sends nothing.
    ///
    /// # Errors
    /// The system's.
    pub async fn tcp(&self) -> io::Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        if let Some(from) = self.from {
            socket.bind((from, 0).into())?;
        }
        socket.connect(self.broker).await
    }

    /// Connects and completes the TLS handshake.
    ///
    /// # Errors
    /// The system's, or the broker ends the connection.
    pub async fn tls(&self) -> io::Result<TlsStream<TcpStream>> {
        let tcp = self.tcp().await?;
        tcp.set_nodelay(true)?;
        let name = ServerName::IpAddress(self.broker.ip().into());
        TlsConnector::from(Arc::clone(&self.tls)).connect(name, tcp).await
    }

    /// A channel for typed calls. Must be made within the peer's [`Netns`].
    ///
    /// # Panics
    /// The broker's address cannot be used.
    pub fn channel(&self) -> Channel {
        channel(&format!("https://{}", self.broker), Arc::clone(&self.tls)).expect("the address is one")
    }

    /// Connects as far as HTTP/2, with a client's preface and empty settings.
    ///
    /// # Errors
    /// The system's, or the broker ends the connection.
    pub async fn http2(&self) -> io::Result<Frames> {
        let mut frames = Frames { io: self.tls().await? };
        frames.send(&[PREFACE, &frame(kind::SETTINGS, 0, 0, &[])].concat()).await?;
        Ok(frames)
    }
}

impl Frames {
    /// Sends bytes.
    ///
    /// # Errors
    /// The connection has ended.
    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.io.write_all(bytes).await?;
        self.io.flush().await
    }

    /// The next frame. Answers settings and pings as a client must.
    ///
    /// # Errors
    /// The connection has ended.
    pub async fn next(&mut self) -> io::Result<Frame> {
        let frame = self.receive().await?;
        if frame.flags & END_STREAM == 0 {
            match frame.kind {
                kind::SETTINGS => self.send(&self::frame(kind::SETTINGS, END_STREAM, 0, &[])).await?,
                kind::PING => self.send(&self::frame(kind::PING, END_STREAM, 0, &frame.payload)).await?,
                _ => {}
            }
        }
        Ok(frame)
    }

    /// The next frame, without an answer to it. Not safe to cancel.
    ///
    /// # Errors
    /// The connection has ended.
    pub async fn receive(&mut self) -> io::Result<Frame> {
        let mut head = [0; 9];
        self.io.read_exact(&mut head).await?;
        let [a, b, c, kind, flags, stream @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        self.io.read_exact(&mut payload).await?;
        Ok(Frame { kind, flags, stream: u32::from_be_bytes(stream) & 0x7fff_ffff, payload })
    }

    /// Reads until the broker ends the connection, and returns every frame that it sent.
    pub async fn until_end(&mut self) -> Vec<Frame> {
        let mut frames = Vec::new();
        while let Ok(frame) = self.next().await {
            frames.push(frame);
        }
        frames
    }

    /// Reads until a frame is as wanted.
    ///
    /// # Errors
    /// The connection has ended before.
    pub async fn until(&mut self, wanted: impl Fn(&Frame) -> bool) -> io::Result<Frame> {
        loop {
            let frame = self.next().await?;
            if wanted(&frame) {
                return Ok(frame);
            }
        }
    }

    /// Both directions of the connection, to send and to receive at once.
    pub fn into_inner(self) -> TlsStream<TcpStream> {
        self.io
    }
}

/// The bytes of a frame.
///
/// # Panics
/// The payload is longer than a frame can say.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a payload is short").to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// The HPACK block of a gRPC call's headers; nothing of it is indexed.
pub fn headers(path: &str) -> Vec<u8> {
    let mut block = vec![0x83, 0x87];
    block.extend([0x01, 6]);
    block.extend(b"broker");
    block.extend([0x04, u8::try_from(path.len()).expect("a path is short")]);
    block.extend(path.as_bytes());
    block.extend([0x0f, 0x10, 16]);
    block.extend(b"application/grpc");
    block.extend([0x00, 2]);
    block.extend(b"te");
    block.push(8);
    block.extend(b"trailers");
    block
}

/// The same headers for the first call of a connection; from then on [`INDEXED`] stands for them.
pub fn indexing_headers(path: &str) -> Vec<u8> {
    let mut block = vec![0x83, 0x87, 0x44, u8::try_from(path.len()).expect("a path is short")];
    block.extend(path.as_bytes());
    block.extend([0x5f, 16]);
    block.extend(b"application/grpc");
    block.extend([0x40, 2]);
    block.extend(b"te");
    block.push(8);
    block.extend(b"trailers");
    block
}

/// The headers of [`indexing_headers`], once they were sent.
pub const INDEXED: &[u8] = &[0x83, 0x87, 0xc0, 0xbf, 0xbe];

/// The bytes of a whole call: headers, and a message that ends the request.
pub fn whole_call(stream: u32, path: &str, message: &[u8]) -> Vec<u8> {
    let mut bytes = frame(kind::HEADERS, END_HEADERS, stream, &headers(path));
    bytes.extend(frame(kind::DATA, END_STREAM, stream, &grpc(message)));
    bytes
}

/// A message as gRPC frames it.
///
/// # Panics
/// The message is longer than gRPC can say.
pub fn grpc(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).expect("a message is short");
    [&[0][..], &length.to_be_bytes(), message].concat()
}
