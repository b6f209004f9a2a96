//! A handshake with a candidate, in memory, before anybody is served with it.

use std::sync::Arc;

use rustls::{ClientConnection, ServerConfig, ServerConnection};

use super::chains::Authorities;
use super::generation::ALPN;
use super::upstream;
use crate::clock::{Clock, Timestamp};
use crate::ids::SpiffeId;

/// Flights of messages each way; a handshake takes two.
const MOST_FLIGHTS: usize = 8;

/// Shakes hands as a caller who believes in `roots`, expects `id` and shows no certificate: the caller must be satisfied
/// with the server, and the server must refuse the caller for want of a certificate and for nothing else.
pub(super) fn handshake(
    server: &Arc<ServerConfig>,
    roots: Authorities,
    id: &SpiffeId,
    at: Timestamp,
) -> Result<(), String> {
    let text = |error: rustls::Error| error.to_string();
    let client = upstream::anonymous(roots, id.clone(), &Clock::manual(at)).map_err(text)?;
    let name = "gateway.invalid".try_into().map_err(|_| "no name")?;
    let mut client = ClientConnection::new(Arc::new(client), name).map_err(text)?;
    let mut server = ServerConnection::new(server.clone()).map_err(text)?;
    for _ in 0..MOST_FLIGHTS {
        let mut flight = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut flight).map_err(|error| error.to_string())?;
        }
        let mut unread = flight.as_slice();
        while !unread.is_empty() {
            server.read_tls(&mut unread).map_err(|error| error.to_string())?;
            match server.process_new_packets() {
                Ok(_) => {}
                Err(rustls::Error::NoCertificatesPresented) if !client.is_handshaking() => {
                    let spoken = client.alpn_protocol() == Some(ALPN);
                    return if spoken { Ok(()) } else { Err("h2 is not chosen (ALPN)".to_owned()) };
                }
                Err(error) => return Err(format!("the server says: {error}")),
            }
        }
        if !client.is_handshaking() {
            return Err("a caller without a certificate is taken".to_owned());
        }
        let mut flight = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut flight).map_err(|error| error.to_string())?;
        }
        let mut unread = flight.as_slice();
        while !unread.is_empty() {
            client.read_tls(&mut unread).map_err(|error| error.to_string())?;
            client.process_new_packets().map_err(|error| format!("a caller says: {error}"))?;
        }
    }
    Err("it does not end".to_owned())
}
