//! What ranks say to each other: messages of CBOR (RFC 8949) after their length.

use super::Timing;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;

/// Bytes of a message's length.
const LENGTH: usize = 4;
/// Longest message that is read: what is known of the rows of a million files takes some 120 MB.
pub(super) const LONGEST: u32 = 256 << 20;

/// Where rank 0 is found.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Address {
    /// Names of its machine.
    pub hosts: Vec<String>,
    /// The port that it listens on.
    pub port: u16,
    /// What is trained.
    pub token: String,
}

/// Why a run of several ranks cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// Which rank.
    pub rank: usize,
    /// Its machine.
    pub host: String,
    /// What is known of it.
    pub cause: String,
    /// Rank 0 did not tell it: it is rank 0 that is not heard of any more.
    #[serde(skip)]
    pub unheard: bool,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} on {}: {}", self.rank, self.host, self.cause)
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Message {
    /// The first of a rank to rank 0.
    Hello { rank: usize, count: usize, host: String, token: String },
    /// Rank 0 takes it.
    Welcome,
    /// Rank 0 does not.
    Refused { why: String },
    /// A sign of life.
    Beat { waiting: bool, exchanges: u64 },
    /// What a rank brings to a meeting.
    Bring { number: u64, bytes: ByteBuf, last: bool },
    /// What all ranks brought.
    All { number: u64, bytes: Vec<ByteBuf>, last: bool },
    /// The rank cannot go on.
    Failed { cause: String },
    /// Nobody can.
    End(End),
}

/// Sends a message whole.
pub(super) fn send(stream: &mut TcpStream, message: &Message) -> io::Result<()> {
    let mut bytes = vec![0; LENGTH];
    ciborium::into_writer(message, &mut bytes).map_err(io::Error::other)?;
    let length = u32::try_from(bytes.len() - LENGTH).map_err(io::Error::other)?;
    bytes[..LENGTH].copy_from_slice(&length.to_le_bytes());
    stream.write_all(&bytes)
}

/// The next message; waits as long as the stream's limit says.
pub(super) fn receive(stream: &mut TcpStream) -> io::Result<Message> {
    let mut length = [0; LENGTH];
    stream.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length);
    if length > LONGEST {
        return Err(io::Error::other("this is not a rank of sae"));
    }
    let mut bytes = vec![0; length as usize];
    stream.read_exact(&mut bytes)?;
    ciborium::from_reader(bytes.as_slice()).map_err(io::Error::other)
}

/// What a connection that failed says of the rank at its other end.
pub(super) fn why(error: &io::Error, timing: Timing) -> String {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => format!(
            "no sign of life for {} s: its node is down, or the network to it",
            timing.silence.as_secs_f64()
        ),
        ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => {
            "its process ended without saying why: it was killed or it crashed (its own output and the system's log may say more)".into()
        }
        _ => format!("the connection to it failed: {error}"),
    }
}
