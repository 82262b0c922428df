//! Listeners: TCP and UDP echo, on both address families. They run in the host's namespace and end with it.

use std::net::Ipv6Addr;

use postern_testkit::serve_each;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use crate::net::Host;

impl Host {
    /// Echoes on a TCP port.
    ///
    /// # Panics
    /// The port is taken.
    pub fn listen_tcp(&self, port: u16) {
        let listener = self.netns().run(TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)));
        let listener =
            listener.unwrap_or_else(|error| panic!("{} cannot listen on tcp/{port}: {error}", self.name()));
        self.netns().start(async move {
            let serving = serve_each(listener, |stream| async move {
                // A peer that breaks its connection is no reason to stop.
                echo(stream).await.ok();
            });
            serving.await
        });
    }

    /// Echoes on a UDP port.
    ///
    /// # Panics
    /// The port is taken.
    pub fn listen_udp(&self, port: u16) {
        let socket = self.netns().run(UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)));
        let socket =
            socket.unwrap_or_else(|error| panic!("{} cannot listen on udp/{port}: {error}", self.name()));
        self.netns().start(async move {
            let mut datagram = [0; 64];
            while let Ok((length, from)) = socket.recv_from(&mut datagram).await {
                // A peer that has gone is no reason to stop.
                let _ = socket.send_to(&datagram[..length], from).await;
            }
        });
    }
}

async fn echo(mut stream: TcpStream) -> std::io::Result<()> {
    let mut bytes = [0; 64];
    loop {
        match stream.read(&mut bytes).await? {
            0 => return Ok(()),
            length => stream.write_all(&bytes[..length]).await?,
        }
    }
}
