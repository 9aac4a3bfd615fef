//! MQTT.

use super::Context;

/// Serves until the daemon stops.
pub async fn run(context: Context) {
    context.stopping.cancelled().await;
}
