//! The three clients, each as its users would write it.

use std::io::{Write, stdout};
use std::time::{Duration, Instant};

use andon_tests::http;
use anyhow::{Context, Result, bail};
use rumqttc::{QoS, v5};
use serde_json::{Value, json};

/// The gateway's name in every topic.
pub(crate) const GATEWAY: &str = "demo";

/// The configured task that the MQTT clients ask.
pub(crate) const TASK: &str = "triage";

/// Longest wait for an answer over MQTT.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);

/// What every topic begins with.
pub(crate) fn base() -> String {
    format!("andon/{GATEWAY}")
}

/// Prints pieces of an answer as they come, and measures them.
struct Answer {
    asked: Instant,
    first: Option<Duration>,
}

impl Answer {
    fn begin(question: &str) -> Answer {
        println!("  > {question}");
        print!("  < ");
        Answer {
            asked: Instant::now(),
            first: None,
        }
    }

    fn piece(&mut self, text: &str) -> Result<()> {
        if self.first.is_none() && !text.is_empty() {
            self.first = Some(self.asked.elapsed());
        }
        print!("{}", text.replace('\n', "\n    "));
        stdout().flush().context("standard output")
    }

    /// Ends the answer; `decode` is the time that all tokens but the first took.
    fn end(self, tokens: u64, decode: Duration) -> Result<()> {
        println!();
        let first = self.first.context("the answer is empty")?;
        let rate = tokens.saturating_sub(1) as f64 / decode.as_secs_f64().max(1e-9);
        println!(
            "    first token after {:.0} ms, {tokens} tokens, {rate:.0} tokens per second",
            first.as_secs_f64() * 1e3
        );
        Ok(())
    }
}

/// A local program: the OpenAI API over the Unix socket, streaming.
pub(crate) fn http(client: &http::Client) -> Result<()> {
    println!("\n== a local program asks over the Unix socket (HTTP, streaming)");
    let question = "A conveyor belt has stopped. What should be checked first?";
    let body = json!({
        "messages": [
            { "role": "system", "content": "You help the workers of a factory. Answer in two short sentences." },
            { "role": "user", "content": question },
        ],
        "max_completion_tokens": 80,
        "temperature": 0,
        "stream": true,
        "stream_options": { "include_usage": true },
    });
    let mut answer = Answer::begin(question);
    let events = client.events("/v1/chat/completions", &body)?;
    if events.status != 200 {
        let status = events.status;
        bail!("HTTP status {status}: {}", events.rest()?);
    }
    let (mut tokens, mut first, mut last) = (None, None, Duration::ZERO);
    for event in events {
        let event = event?;
        if event.data == "[DONE]" {
            let decode = last.saturating_sub(first.unwrap_or_default());
            return answer.end(tokens.context("no usage in the stream")?, decode);
        }
        let chunk: Value = serde_json::from_str(&event.data).with_context(|| event.data.clone())?;
        if let Some(text) = chunk["choices"][0]["delta"]["content"]
            .as_str()
            .filter(|text| !text.is_empty())
        {
            answer.piece(text)?;
            first.get_or_insert(event.after);
            last = event.after;
        }
        tokens = chunk["usage"]["completion_tokens"].as_u64().or(tokens);
    }
    bail!("the stream ended without [DONE]")
}

/// A modern client: MQTT 5 with Response Topic and Correlation Data, streaming.
pub(crate) fn mqtt_v5(port: u16) -> Result<()> {
    println!(
        "\n== a PLC gateway asks the task `{TASK}` over MQTT 5 (Response Topic, Correlation Data)"
    );
    let (request, response) = (
        format!("{}/request/press4/{TASK}", base()),
        format!("{}/response/press4/line", base()),
    );
    let correlation = "17";
    let mut options = v5::MqttOptions::new("demo-press4", "127.0.0.1", port);
    options.set_keep_alive(Duration::from_secs(30));
    let (client, mut connection) = v5::Client::new(options, 16);
    client.subscribe(&response, v5::mqttbytes::QoS::AtLeastOnce)?;
    client.subscribe(
        format!("{}/status", base()),
        v5::mqttbytes::QoS::AtLeastOnce,
    )?;

    let input =
        json!({ "machine": "press 4", "code": "E42", "text": "hydraulic pressure below minimum" });
    let mut answer: Option<Answer> = None;
    let start = Instant::now();
    while start.elapsed() < ANSWER_TIMEOUT {
        let event = match connection.recv_timeout(Duration::from_secs(1)) {
            Ok(event) => event.context("MQTT 5")?,
            Err(_) => continue,
        };
        let v5::Event::Incoming(v5::mqttbytes::v5::Packet::Publish(message)) = event else {
            continue;
        };
        let payload: Value = serde_json::from_slice(&message.payload)?;
        // The retained status says that the gateway listens.
        if message.topic.ends_with(b"/status") {
            if payload["ready"] == true && answer.is_none() {
                println!("    {request}  correlation data {correlation}");
                answer = Some(Answer::begin(&input.to_string()));
                let properties = v5::mqttbytes::v5::PublishProperties {
                    response_topic: Some(response.clone()),
                    correlation_data: Some(correlation.into()),
                    content_type: Some("application/json".to_owned()),
                    user_properties: vec![("stream".to_owned(), "true".to_owned())],
                    ..Default::default()
                };
                let body = json!({ "input": input }).to_string();
                client.publish_with_properties(
                    &request,
                    v5::mqttbytes::QoS::AtLeastOnce,
                    false,
                    body,
                    properties,
                )?;
            }
            continue;
        }
        let came = message
            .properties
            .and_then(|properties| properties.correlation_data);
        if came.as_deref() != Some(correlation.as_bytes()) {
            bail!("an answer with correlation data {came:?}");
        }
        if take(&mut answer, &payload)? {
            return Ok(());
        }
    }
    bail!(
        "no answer over MQTT 5 within {} s",
        ANSWER_TIMEOUT.as_secs()
    )
}

/// An old client: MQTT 3.1.1, a topic and a payload and nothing else.
pub(crate) fn mqtt_v311(port: u16) -> Result<()> {
    println!("\n== an old SCADA client asks the task `{TASK}` over MQTT 3.1.1 (no properties)");
    let request = format!("{}/request/scada/{TASK}", base());
    let mut options = rumqttc::MqttOptions::new("demo-scada", "127.0.0.1", port);
    options.set_keep_alive(Duration::from_secs(30));
    let (client, mut connection) = rumqttc::Client::new(options, 16);
    client.subscribe(format!("{}/response/scada/#", base()), QoS::AtLeastOnce)?;

    let input =
        json!({ "machine": "oven 2", "code": "F07", "text": "temperature sensor open circuit" });
    let mut answer = None;
    let start = Instant::now();
    while start.elapsed() < ANSWER_TIMEOUT {
        let event = match connection.recv_timeout(Duration::from_secs(1)) {
            Ok(event) => event.context("MQTT 3.1.1")?,
            Err(_) => continue,
        };
        match event {
            rumqttc::Event::Incoming(rumqttc::Packet::SubAck(_)) => {
                println!("    {request}");
                let body = json!({ "id": "1", "stream": true, "input": input }).to_string();
                answer = Some(Answer::begin(&input.to_string()));
                client.publish(&request, QoS::AtLeastOnce, false, body)?;
            }
            rumqttc::Event::Incoming(rumqttc::Packet::Publish(message)) => {
                let payload: Value = serde_json::from_slice(&message.payload)?;
                if take(&mut answer, &payload)? {
                    return Ok(());
                }
            }
            _ => {}
        }
    }
    bail!(
        "no answer over MQTT 3.1.1 within {} s",
        ANSWER_TIMEOUT.as_secs()
    )
}

/// Takes one message of an answer; true if it was the last.
fn take(answer: &mut Option<Answer>, payload: &Value) -> Result<bool> {
    let text = |key: &str| {
        payload[key]
            .as_str()
            .with_context(|| format!("no {key} in {payload}"))
    };
    match text("type")? {
        "chunk" => {
            answer
                .as_mut()
                .context("an answer before the question")?
                .piece(text("text")?)?;
            Ok(false)
        }
        "answer" => {
            let whole = text("answer")?;
            let mut answer = answer.take().context("an answer before the question")?;
            if answer.first.is_none() {
                answer.piece(whole)?;
            }
            let number = |section: &str, key: &str| {
                payload[section][key]
                    .as_u64()
                    .with_context(|| format!("no {section}.{key} in {payload}"))
            };
            let decode = Duration::from_micros(number("timings", "decode_us")?);
            answer.end(number("usage", "completion_tokens")?, decode)?;
            Ok(true)
        }
        _ => bail!("andond answered {payload}"),
    }
}
