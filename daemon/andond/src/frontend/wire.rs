//! The compact socket: frames of `andon-wire`, several requests at once on one connection.
//!
//! A connection is one task that reads and one that writes, with a bounded queue between what answers and
//! the writer. A request that this connection asked ends with it.
//!
//! Invariant: a frame is interpreted only after its length and checksum were; after a frame that cannot be
//! read the connection says why and closes, since the next border is unknown.

mod backends;
mod connection;
mod convert;
mod models;
mod spool;

use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::task::JoinSet;

use super::Context;
use super::places::Places;
use crate::request::Origin;

/// A pause after a failed accept, so that a full descriptor table does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves until the daemon stops and the requests in flight have ended.
pub async fn run(context: Context, socket: UnixListener) {
    let places = Places::new(context.current.clone(), |config| {
        config.wire.connections_max
    });
    let mut connections = JoinSet::new();
    loop {
        // Finished connections are forgotten as the next one comes.
        while connections.try_join_next().is_some() {}
        let accept = async {
            let place = places.take().await;
            let (stream, _) = socket.accept().await?;
            let peer = Arc::new(andon_os::peer(&stream)?);
            Ok::<_, std::io::Error>((stream, peer, place))
        };
        let accepted = tokio::select! {
            // Nobody is taken on who would not be answered any more.
            biased;
            () = context.stopping.cancelled() => break,
            accepted = accept => accepted,
        };
        match accepted {
            Ok((stream, peer, place)) => {
                let context = context.clone();
                let open = context.telemetry.connects(Origin::Wire);
                connections.spawn(async move {
                    connection::serve(context, stream, peer).await;
                    drop((open, place));
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(socket);
    while connections.join_next().await.is_some() {}
}
