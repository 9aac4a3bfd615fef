//! What a broker sends: a byte for the protocol's version, then packets.
//!
//! rumqttc reads them and answers; whatever they are, the client goes on or drops the connection, and holds no more than came.

use andon_os::heap;
use bytes::BytesMut;

/// The protocol is 3.1.1; else it is 5.
pub(crate) const V311: u8 = 1;

/// Most bytes of a packet.
const PACKET_BYTES_MAX: usize = 1 << 16;
/// Requests that may be open, each of which has a place.
const INFLIGHT_MAX: u16 = 16;

pub(crate) fn run(data: &[u8]) {
    let [version, stream @ ..] = data else {
        return;
    };
    // Sets of all packet identifiers, and what each packet is read into: a copy of it, and events with another.
    let limit = (1 << 18) + 64 * stream.len();
    let stream = BytesMut::from(stream);
    heap::measure(limit, data.len() as u64, || match version & V311 {
        V311 => v311(stream),
        _ => v5(stream),
    });
}

fn v311(mut stream: BytesMut) {
    use rumqttc::mqttbytes::v4::Packet;
    let mut state = rumqttc::MqttState::new(INFLIGHT_MAX, true);
    loop {
        let before = stream.len();
        let Ok(packet) = Packet::read(&mut stream, PACKET_BYTES_MAX) else {
            break;
        };
        assert!(stream.len() < before, "a packet takes bytes");
        let Ok(answer) = state.handle_incoming_packet(packet) else {
            break;
        };
        // The event loop reads some ten packets, and no more before their events are taken.
        state.events.clear();
        if let Some(answer) = answer {
            let mut written = BytesMut::new();
            answer
                .write(&mut written, PACKET_BYTES_MAX)
                .expect("an answer is small");
            let again = Packet::read(&mut written, PACKET_BYTES_MAX);
            assert_eq!(again.expect("it was written"), answer);
        }
    }
}

fn v5(mut stream: BytesMut) {
    use rumqttc::v5::mqttbytes::v5::Packet;
    let most = Some(PACKET_BYTES_MAX as u32);
    let mut state = rumqttc::v5::MqttState::new(INFLIGHT_MAX, true);
    loop {
        let before = stream.len();
        let Ok(packet) = Packet::read(&mut stream, most) else {
            break;
        };
        assert!(stream.len() < before, "a packet takes bytes");
        let Ok(answer) = state.handle_incoming_packet(packet) else {
            break;
        };
        // The event loop reads some ten packets, and no more before their events are taken.
        state.events.clear();
        if let Some(answer) = answer {
            let mut written = BytesMut::new();
            answer
                .write(&mut written, most)
                .expect("an answer is small");
            let again = Packet::read(&mut written, most);
            assert_eq!(again.expect("it was written"), answer);
        }
    }
}
