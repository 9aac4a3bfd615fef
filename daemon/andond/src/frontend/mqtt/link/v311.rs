//! MQTT 3.1.1 through rumqttc.

use rumqttc::mqttbytes::Error as CodecError;
use rumqttc::mqttbytes::v4::Packet;
use rumqttc::{
    AsyncClient, ConnectReturnCode, ConnectionError, Event, EventLoop, LastWill, MqttOptions,
    Outgoing as Sent, Publish, QoS, StateError, SubscribeFilter, SubscribeReasonCode,
};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::{Cause, Greeting, LinkEvent, LinkOptions};
use crate::frontend::mqtt::message::{AckToken, Incoming, Outgoing, Properties};

pub(super) fn open(
    options: &LinkOptions,
    clean: bool,
    events: mpsc::Sender<LinkEvent>,
) -> (AsyncClient, JoinHandle<()>) {
    let mut mqtt = MqttOptions::new(&options.client_id, &options.host, options.port);
    mqtt.set_transport(options.transport.clone());
    mqtt.set_keep_alive(options.keep_alive);
    mqtt.set_clean_session(clean);
    mqtt.set_manual_acks(true);
    // One place more than the window, as with MQTT 5.
    mqtt.set_inflight(options.unacknowledged_max.saturating_add(1));
    let bytes = |bytes: u32| usize::try_from(bytes).unwrap_or(usize::MAX);
    mqtt.set_max_packet_size(
        bytes(options.oversize_bytes_max()),
        bytes(options.packet_bytes_max),
    );
    if let Some((name, password)) = &options.credentials {
        mqtt.set_credentials(name, password);
    }
    let will = &options.will;
    mqtt.set_last_will(LastWill::new(
        &will.topic,
        will.payload.to_vec(),
        quality(will),
        will.retain,
    ));

    let (client, mut event_loop) = AsyncClient::new(mqtt, options.request_places());
    event_loop
        .network_options
        .set_connection_timeout(options.connect_timeout.as_secs());
    event_loop.network_options.set_tcp_nodelay(true);
    let driver = tokio::spawn(drive(event_loop, options.clone(), events));
    (client, driver)
}

fn quality(message: &Outgoing) -> QoS {
    if message.confirmed {
        QoS::AtLeastOnce
    } else {
        QoS::AtMostOnce
    }
}

async fn drive(mut event_loop: EventLoop, options: LinkOptions, events: mpsc::Sender<LinkEvent>) {
    let mut greeted = false;
    loop {
        let (event, last) = match event_loop.poll().await {
            Ok(Event::Incoming(Packet::ConnAck(connack))) => {
                greeted = true;
                let greeting = Greeting {
                    session_present: connack.session_present,
                    packet_bytes_max: usize::try_from(options.packet_bytes_max)
                        .unwrap_or(usize::MAX),
                    window: usize::from(options.unacknowledged_max),
                };
                (LinkEvent::Greeted(greeting), false)
            }
            Ok(event) => (translate(event), false),
            Err(error) => (
                LinkEvent::Closed(cause(&error, greeted), error.to_string()),
                true,
            ),
        };
        if events.send(event).await.is_err() || last {
            return;
        }
    }
}

fn translate(event: Event) -> LinkEvent {
    match event {
        Event::Incoming(Packet::Publish(publish)) => {
            let ack = (publish.qos != QoS::AtMostOnce).then_some(AckToken {
                packet_id: publish.pkid,
                exactly_once: publish.qos == QoS::ExactlyOnce,
            });
            LinkEvent::Message(Incoming {
                topic: publish.topic,
                payload: publish.payload,
                retain: publish.retain,
                repeated: publish.dup,
                properties: Properties::default(),
                ack,
            })
        }
        Event::Incoming(Packet::PubAck(puback)) => LinkEvent::Confirmed(puback.pkid, None),
        Event::Incoming(Packet::SubAck(suback)) => {
            let outcomes = suback.return_codes.iter().map(|code| match code {
                SubscribeReasonCode::Success(_) => None,
                SubscribeReasonCode::Failure => Some("the broker refused it".to_owned()),
            });
            LinkEvent::Subscribed(outcomes.collect())
        }
        Event::Outgoing(Sent::Publish(packet_id)) if packet_id != 0 => LinkEvent::Sent(packet_id),
        _ => LinkEvent::Alive,
    }
}

pub(super) fn publish(client: &AsyncClient, message: &Outgoing) -> bool {
    client
        .try_publish(
            message.topic.as_str(),
            quality(message),
            message.retain,
            message.payload.to_vec(),
        )
        .is_ok()
}

pub(super) fn acknowledge(client: &AsyncClient, token: AckToken) -> bool {
    let quality = if token.exactly_once {
        QoS::ExactlyOnce
    } else {
        QoS::AtLeastOnce
    };
    let mut publish = Publish::new("", quality, Vec::new());
    publish.pkid = token.packet_id;
    client.try_ack(&publish).is_ok()
}

pub(super) fn subscribe(client: &AsyncClient, filters: &[String]) -> bool {
    let filters = filters
        .iter()
        .map(|path| SubscribeFilter::new(path.clone(), QoS::AtLeastOnce));
    client.try_subscribe_many(filters).is_ok()
}

fn cause(error: &ConnectionError, greeted: bool) -> Cause {
    match error {
        ConnectionError::ConnectionRefused(ConnectReturnCode::RefusedProtocolVersion) => {
            Cause::VersionRefused
        }
        ConnectionError::ConnectionRefused(_) => Cause::Refused,
        ConnectionError::MqttState(StateError::Deserialization(
            CodecError::PayloadSizeLimitExceeded(..),
        )) => Cause::PacketTooLarge,
        _ if greeted => Cause::Broken,
        ConnectionError::MqttState(_)
        | ConnectionError::NotConnAck(_)
        | ConnectionError::NetworkTimeout => Cause::NoGreeting,
        _ => Cause::Unreachable,
    }
}
