//! MQTT 5 through rumqttc.

use rumqttc::Outgoing as Sent;
use rumqttc::v5::mqttbytes::Error as CodecError;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{
    ConnAck, ConnectProperties, ConnectReturnCode, Filter, LastWill, LastWillProperties, Packet,
    PubAckReason, Publish, PublishProperties, RetainForwardRule, SubscribeReasonCode,
};
use rumqttc::v5::{AsyncClient, ConnectionError, Event, EventLoop, MqttOptions, StateError};
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
    mqtt.set_clean_start(clean);
    mqtt.set_manual_acks(true);
    mqtt.set_connection_timeout(options.connect_timeout.as_secs());
    let mut network = mqtt.network_options();
    network.set_tcp_nodelay(true);
    mqtt.set_network_options(network);
    // One place more than the window, so that acknowledgements, which share rumqttc's queue with messages,
    // never wait for the broker's confirmations.
    mqtt.set_outgoing_inflight_upper_limit(options.unacknowledged_max.saturating_add(1));
    if let Some((name, password)) = &options.credentials {
        mqtt.set_credentials(name, password);
    }
    let mut connect = ConnectProperties::new();
    connect.session_expiry_interval = Some(options.session_expiry_s);
    connect.receive_maximum = Some(options.unacknowledged_max);
    connect.max_packet_size = Some(options.packet_bytes_max);
    connect.request_problem_info = Some(1);
    mqtt.set_connect_properties(connect);
    let will = &options.will;
    let properties = LastWillProperties {
        delay_interval: None,
        payload_format_indicator: Some(1),
        message_expiry_interval: None,
        content_type: will.properties.content_type.clone(),
        response_topic: None,
        correlation_data: None,
        user_properties: Vec::new(),
    };
    let payload = will.payload.to_vec();
    mqtt.set_last_will(LastWill::new(
        &will.topic,
        payload,
        quality(will),
        will.retain,
        Some(properties),
    ));

    let (client, event_loop) = AsyncClient::new(mqtt, options.request_places());
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
            Ok(event) => {
                if let Event::Incoming(Packet::ConnAck(connack)) = &event {
                    greeted = true;
                    // A broker may order "no keep-alive", which rumqttc takes for "always".
                    if event_loop.options.keep_alive().is_zero() {
                        event_loop.options.set_keep_alive(options.keep_alive);
                    }
                    if connack
                        .properties
                        .as_ref()
                        .is_some_and(|properties| properties.receive_max == Some(0))
                    {
                        let why =
                            "the broker takes no message at all (Receive Maximum 0)".to_owned();
                        (LinkEvent::Closed(Cause::Broken, why), true)
                    } else {
                        (LinkEvent::Greeted(greeting(connack, &options)), false)
                    }
                } else {
                    (translate(event), false)
                }
            }
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

fn greeting(connack: &ConnAck, options: &LinkOptions) -> Greeting {
    let properties = connack.properties.as_ref();
    let broker_bytes = properties
        .and_then(|properties| properties.max_packet_size)
        .unwrap_or(u32::MAX);
    let receive_max = properties
        .and_then(|properties| properties.receive_max)
        .unwrap_or(u16::MAX);
    // rumqttc stops taking anything when the broker's own bound is reached, so stay one below it.
    let window = options
        .unacknowledged_max
        .min(receive_max.saturating_sub(1))
        .max(1);
    Greeting {
        session_present: connack.session_present,
        packet_bytes_max: usize::try_from(broker_bytes.min(options.packet_bytes_max))
            .unwrap_or(usize::MAX),
        window: usize::from(window),
    }
}

fn translate(event: Event) -> LinkEvent {
    match event {
        Event::Incoming(Packet::Publish(publish)) => LinkEvent::Message(incoming(publish)),
        Event::Incoming(Packet::PubAck(puback)) => {
            let refused = match puback.reason {
                PubAckReason::Success | PubAckReason::NoMatchingSubscribers => None,
                reason => Some(format!("{reason:?}")),
            };
            LinkEvent::Confirmed(puback.pkid, refused)
        }
        Event::Incoming(Packet::SubAck(suback)) => {
            let outcomes = suback.return_codes.iter().map(|code| match code {
                SubscribeReasonCode::Success(_) => None,
                code => Some(format!("{code:?}")),
            });
            LinkEvent::Subscribed(outcomes.collect())
        }
        // Packet id 0 is a message that nobody confirms.
        Event::Outgoing(Sent::Publish(packet_id)) if packet_id != 0 => LinkEvent::Sent(packet_id),
        _ => LinkEvent::Alive,
    }
}

fn incoming(publish: Publish) -> Incoming {
    let ack = (publish.qos != QoS::AtMostOnce).then_some(AckToken {
        packet_id: publish.pkid,
        exactly_once: publish.qos == QoS::ExactlyOnce,
    });
    let properties = publish
        .properties
        .map_or_else(Properties::default, |properties| Properties {
            response_topic: properties.response_topic,
            correlation: properties.correlation_data,
            content_type: properties.content_type,
            expiry_s: properties.message_expiry_interval,
            user: properties.user_properties,
        });
    Incoming {
        topic: String::from_utf8(publish.topic.to_vec()).unwrap_or_default(),
        payload: publish.payload,
        retain: publish.retain,
        repeated: publish.dup,
        properties,
        ack,
    }
}

pub(super) fn publish(client: &AsyncClient, message: &Outgoing) -> bool {
    let properties = &message.properties;
    let properties = PublishProperties {
        payload_format_indicator: None,
        message_expiry_interval: properties.expiry_s,
        topic_alias: None,
        response_topic: properties.response_topic.clone(),
        correlation_data: properties.correlation.clone(),
        user_properties: properties.user.clone(),
        subscription_identifiers: Vec::new(),
        content_type: properties.content_type.clone(),
    };
    client
        .try_publish_with_properties(
            message.topic.as_str(),
            quality(message),
            message.retain,
            message.payload.clone(),
            properties,
        )
        .is_ok()
}

pub(super) fn acknowledge(client: &AsyncClient, token: AckToken) -> bool {
    let publish = Publish {
        qos: if token.exactly_once {
            QoS::ExactlyOnce
        } else {
            QoS::AtLeastOnce
        },
        pkid: token.packet_id,
        ..Publish::default()
    };
    client.try_ack(&publish).is_ok()
}

pub(super) fn subscribe(client: &AsyncClient, filters: &[String]) -> bool {
    let filters = filters.iter().map(|path| Filter {
        path: path.clone(),
        qos: QoS::AtLeastOnce,
        nolocal: false,
        // As with 3.1.1, only what the broker kept from before is then marked as retained.
        preserve_retain: false,
        retain_forward_rule: RetainForwardRule::Never,
    });
    client.try_subscribe_many(filters).is_ok()
}

fn cause(error: &ConnectionError, greeted: bool) -> Cause {
    match error {
        ConnectionError::ConnectionRefused(
            ConnectReturnCode::UnsupportedProtocolVersion
            | ConnectReturnCode::RefusedProtocolVersion,
        ) => Cause::VersionRefused,
        ConnectionError::ConnectionRefused(_) => Cause::Refused,
        ConnectionError::MqttState(
            StateError::IncomingPacketTooLarge { .. }
            | StateError::Deserialization(CodecError::PayloadSizeLimitExceeded { .. }),
        ) => Cause::PacketTooLarge,
        _ if greeted => Cause::Broken,
        ConnectionError::MqttState(_)
        | ConnectionError::NotConnAck(_)
        | ConnectionError::Timeout(_) => Cause::NoGreeting,
        _ => Cause::Unreachable,
    }
}
