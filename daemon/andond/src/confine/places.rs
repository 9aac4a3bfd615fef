//! Which files and ports a configuration needs.
//!
//! A file that may be replaced while the daemon runs, as certificates, keys and models are, is granted with the folder it is
//! in: what takes its place is another file. A folder that many things share is not granted for one of them.
//!
//! Invariant: every key that names a file, a folder, a port or a listener is looked at here; a test has the annotated
//! configuration for a list of them.

use std::collections::BTreeSet;
use std::env;
use std::net::IpAddr;
use std::path::{Component, Path, PathBuf};

use andon_confine::files::Places;
use andon_engine::backend::Backend;
use andon_engine::gguf::PartName;
use andon_engine::tokenizer::TemplateChoice;

use crate::config::engine::BackendChoice;
use crate::config::speculation::DraftPlace;
use crate::config::spool::Durable;
use crate::config::{self, Config};

/// The port of the domain name system, where answers do not fit a datagram.
const PORT_DNS: u16 = 53;

/// What the libraries read that look up names, users, groups and times, and what tells of the machine. `/etc` is granted whole:
/// its files are replaced whenever the network changes. So is `/proc`: its files have no identity that lasts. What other
/// processes there tell is closed by Landlock where it is not public, and by the unit (`ProtectProc=`).
const SYSTEM: &[&str] = &[
    "/etc",
    "/proc",
    "/sys",
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/share/zoneinfo",
    "/usr/share/ca-certificates",
    "/usr/local/share/ca-certificates",
    "/var/lib/sss",
    "/run/nscd",
    "/run/systemd/resolve",
    "/run/systemd/timesync",
    "/run/systemd/userdb",
    "/dev/null",
    "/dev/urandom",
];

/// What the nodes of NVIDIA's devices begin with in `/dev`: those of the desktop and server driver, then those of Jetson.
const DEVICES: &[&str] = &[
    "nvidia", "nvmap", "nvhost", "nvgpu", "nvsci", "host1x", "dri",
];
/// Nodes without which there is no such device.
const DEVICE_SIGNS: &[&str] = &["/dev/nvidiactl", "/dev/nvmap"];
/// What its library reads.
const DRIVER: &[&str] = &["/usr/share/nvidia", "/run/nvidia-persistenced"];

/// Whether the library of an accelerator's driver is to be used, as far as can be told before it is: where the configuration asks
/// for it, or would take it and there seems to be a device.
#[must_use]
pub fn wants_driver(config: &Config) -> bool {
    match config.engine.backend {
        BackendChoice::Cpu => false,
        BackendChoice::Cuda => true,
        BackendChoice::Auto => {
            Backend::Cuda.not_built().is_none()
                && DEVICE_SIGNS.iter().any(|sign| Path::new(sign).exists())
        }
    }
}

/// The nodes of devices that there are.
fn devices() -> BTreeSet<PathBuf> {
    let entries = std::fs::read_dir("/dev").into_iter().flatten().flatten();
    let is_one = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        DEVICES
            .iter()
            .any(|start| name.starts_with(start.as_bytes()))
    };
    entries.map(|entry| entry.path()).filter(is_one).collect()
}

/// The folders that the daemon keeps things in.
pub fn kept(config: &Config) -> impl Iterator<Item = &Path> {
    let spool = (config.spool.durable == Durable::On).then_some(&config.spool.dir);
    let audit = config.audit.enabled.then_some(&config.audit.dir);
    let ledger = (!config.budget.is_empty()).then_some(&config.ledger.dir);
    [&config.models.dir, &config.cache.dir]
        .into_iter()
        .chain(spool)
        .chain(audit)
        .chain(ledger)
        .map(PathBuf::as_path)
}

/// What `config`, read from `file`, needs where the sockets with the paths `passed` are listened on already.
#[must_use]
pub fn of(config: &Config, file: &Path, passed: &[&Path]) -> Places {
    let mut read: BTreeSet<PathBuf> = SYSTEM.iter().map(PathBuf::from).collect();
    read.insert(config.hardware.sys_dir.clone());
    read.insert(config.hardware.proc_dir.clone());
    name_servers(Path::new("/etc/resolv.conf"), &mut read);
    read.extend(env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from));
    // Of the program itself backtraces are made.
    read.extend(env::current_exe().ok());

    let template = match config.model.template_choice() {
        Some(TemplateChoice::File(path)) => Some(path),
        _ => None,
    };
    let (of_token, of_link, of_upstream) = (token(config), link(config), upstream(config));
    read.extend(of_token.read.into_iter().chain(of_link.read));
    read.extend(of_upstream.read);
    let named = [&config.spool.key_file, &config.router.weights, &template]
        .into_iter()
        .flatten()
        .map(PathBuf::as_path)
        .chain([file]);
    for path in named {
        replaceable(path, &mut read);
    }
    if !config.model.is_kept() {
        weights(&config.model.path, &mut read);
    }
    if let Some(DraftPlace::Path(path)) = config.speculation.draft_place() {
        weights(path, &mut read);
    }

    let mut nodes = BTreeSet::new();
    if wants_driver(config) {
        read.extend(DRIVER.iter().map(PathBuf::from));
        nodes = devices();
    }

    let mut listen = BTreeSet::new();
    if config.http.enabled {
        listen.extend(config.http.listen.map(|address| address.port()));
    }
    listen.extend(config.metrics.listen.map(|address| address.port()));
    let sockets = sockets(config).filter(|socket| !passed.contains(socket));
    Places {
        read,
        keep: kept(config).map(Path::to_owned).collect(),
        sockets: sockets
            .filter_map(|socket| socket.parent().map(Path::to_owned))
            .collect(),
        devices: nodes,
        listen,
        connect: &of_link.connect | &of_upstream.connect,
        // The service manager of a container may be told so.
        abstract_sockets: env::var_os("NOTIFY_SOCKET")
            .is_some_and(|path| path.as_encoded_bytes().starts_with(b"@")),
    }
}

/// What the token of the loopback listener needs.
#[must_use]
pub fn token(config: &Config) -> Places {
    let mut places = Places::default();
    if config.http.enabled
        && let Some(path) = &config.http.token_file
    {
        replaceable(path, &mut places.read);
    }
    places
}

/// What the link to the broker needs.
#[must_use]
pub fn link(config: &Config) -> Places {
    let (mqtt, mut places) = (&config.mqtt, Places::default());
    if !mqtt.enabled {
        return places;
    }
    let files = [
        &mqtt.password_file,
        &mqtt.ca_file,
        &mqtt.certificate_file,
        &mqtt.key_file,
    ];
    for path in files.into_iter().flatten() {
        replaceable(path, &mut places.read);
    }
    places.connect.insert(mqtt.port());
    if mqtt.host.parse::<IpAddr>().is_err() {
        places.connect.insert(PORT_DNS);
    }
    places
}

/// What the upstreams need.
#[must_use]
pub fn upstream(config: &Config) -> Places {
    let mut places = Places::default();
    for upstream in &config.upstream {
        for (_, path) in upstream.files() {
            replaceable(&path, &mut places.read);
        }
        if let Some(peer) = upstream.peer() {
            places.connect.insert(config::upstream::port(&peer));
            if config::upstream::ip(&peer).is_none() {
                places.connect.insert(PORT_DNS);
            }
        }
    }
    places
}

/// The paths of the Unix sockets.
fn sockets(config: &Config) -> impl Iterator<Item = &Path> {
    let http = config.http.enabled.then_some(&config.http.socket);
    let wire = config.wire.enabled.then_some(&config.wire.socket);
    http.into_iter().chain(wire).map(PathBuf::as_path)
}

/// Grants the file with the name servers and its folder where `path` is a link into what the network's manager makes. That may
/// come later than the daemon, and its folder with it: then the nearest folder that is there, unless it is one of everybody.
fn name_servers(path: &Path, read: &mut BTreeSet<PathBuf>) {
    let (Ok(target), Some(beside)) = (path.read_link(), path.parent()) else {
        return;
    };
    let target = beside.join(target);
    let mut folders = target.ancestors().skip(1).zip(0..);
    // Without the ".." that such links are made with.
    let there = folders.find_map(|(folder, up)| Some((folder.canonicalize().ok()?, up)));
    let Some((folder, up)) = there else { return };
    if let (0, Some(name)) = (up, target.file_name()) {
        read.insert(folder.join(name));
    }
    // `/run/NetworkManager` is the manager's own.
    if !is_shared(&folder) || (up == 0 && folder.components().count() > 2) {
        read.insert(folder);
    }
}

/// Grants the file of a model, and the other parts of one that is split.
fn weights(path: &Path, read: &mut BTreeSet<PathBuf>) {
    replaceable(path, read);
    if let Some(name) = PartName::of(path) {
        for index in 0..name.count {
            let part = name.part(index);
            read.extend(part.canonicalize().ok());
            read.insert(part);
        }
    }
}

/// Grants a file and what takes its place, by its own name and by that it is a link to.
fn replaceable(path: &Path, read: &mut BTreeSet<PathBuf>) {
    for path in [std::path::absolute(path), path.canonicalize()]
        .into_iter()
        .flatten()
    {
        if let Some(folder) = path.parent().filter(|folder| !is_shared(folder)) {
            read.insert(folder.to_owned());
        }
        read.insert(path);
    }
}

/// Whether a folder is one of those that programs and users share: the root, what is in it, and what is in those of it where
/// each entry is somebody else's.
pub(super) fn is_shared(folder: &Path) -> bool {
    let mut names = folder.components().filter_map(|component| match component {
        Component::Normal(name) => name.to_str(),
        _ => None,
    });
    let Some(first) = names.next() else {
        return true;
    };
    let depth = names.count() + 1;
    let of_everybody = matches!(first, "home" | "media" | "mnt" | "run" | "usr" | "var");
    depth == 1 || (depth == 2 && of_everybody)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every key that names a place, with a value of it and what has to be on besides.
    const KEYS: &[(&str, &str, &str, &str)] = &[
        ("model", "path", "/p/model/m.gguf", ""),
        ("model", "chat-template", "/p/template/t.jinja", ""),
        ("models", "dir", "/p/models", ""),
        ("cache", "dir", "/p/cache", ""),
        ("speculation", "draft", "/p/draft/d.gguf", ""),
        ("spool", "dir", "/p/spool", ""),
        ("spool", "key-file", "/p/key/k", ""),
        ("router", "weights", "/p/weights/w", ""),
        ("http", "socket", "/p/http/s", ""),
        ("http", "listen", "127.0.0.1:4001", "token-file = \"/t\""),
        (
            "http",
            "token-file",
            "/p/token/t",
            "listen = \"127.0.0.1:4001\"",
        ),
        ("metrics", "listen", "0.0.0.0:4003", ""),
        ("wire", "socket", "/p/wire/s", ""),
        ("mqtt", "host", "broker.plant", "enabled = true"),
        ("mqtt", "port", "4002", "enabled = true"),
        (
            "mqtt",
            "password-file",
            "/p/password/p",
            "enabled = true\nusername = \"u\"",
        ),
        ("mqtt", "ca-file", "/p/ca/c", "enabled = true\ntls = true"),
        (
            "mqtt",
            "certificate-file",
            "/p/certificate/c",
            "enabled = true\ntls = true\nca-file = \"/c\"\nkey-file = \"/k\"",
        ),
        (
            "mqtt",
            "key-file",
            "/p/private/k",
            "enabled = true\ntls = true\nca-file = \"/c\"\ncertificate-file = \"/k\"",
        ),
        ("audit", "dir", "/p/audit", "enabled = true"),
        (
            "ledger",
            "dir",
            "/p/ledger",
            "[[budget]]\nname = \"b\"\ntokens-per-day = 1",
        ),
        (
            "upstream",
            "url",
            "https://10.0.0.1:4004/v1",
            "name = \"u\"\nmodel = \"m\"",
        ),
        (
            "upstream",
            "proxy",
            "http://10.0.0.1:4005",
            "name = \"u\"\nmodel = \"m\"\nurl = \"https://llm.plant/v1\"",
        ),
        (
            "upstream",
            "api-key-file",
            "/p/api/k",
            "name = \"u\"\nmodel = \"m\"\nurl = \"https://llm.plant/v1\"",
        ),
        (
            "upstream",
            "ca-file",
            "/p/authority/c",
            "name = \"u\"\nmodel = \"m\"\nurl = \"https://llm.plant/v1\"",
        ),
        (
            "upstream",
            "certificate-file",
            "/p/client/c",
            "name = \"u\"\nmodel = \"m\"\nurl = \"https://llm.plant/v1\"\nkey-file = \"/k\"",
        ),
        (
            "upstream",
            "key-file",
            "/p/client-key/k",
            "name = \"u\"\nmodel = \"m\"\nurl = \"https://llm.plant/v1\"\ncertificate-file = \"/c\"",
        ),
        (
            "upstream",
            "proxy-login-file",
            "/p/login/l",
            "name = \"u\"\nmodel = \"m\"\nurl = \"https://llm.plant/v1\"\nproxy = \"http://10.0.0.1:4005\"",
        ),
        ("router", "weights", "/p/router/w.bin", ""),
        ("hardware", "sys-dir", "/p/sys", ""),
        ("hardware", "proc-dir", "/p/proc", ""),
    ];

    fn read(text: &str) -> Config {
        Config::parse(text).unwrap_or_else(|problems| panic!("{text}: {problems}"))
    }

    fn all_of(places: &Places) -> BTreeSet<String> {
        let paths = [&places.read, &places.keep, &places.sockets];
        let paths = paths
            .into_iter()
            .flatten()
            .map(|path| path.display().to_string());
        let ports = [&places.listen, &places.connect];
        paths
            .chain(ports.into_iter().flatten().map(u16::to_string))
            .collect()
    }

    #[test]
    fn each_of_the_keys_opens_its_place_and_no_other_does() {
        for &(section, key, value, with) in KEYS {
            let bare = if section == "model" {
                String::new()
            } else {
                "[model]\npath = \"/m.gguf\"\n".to_owned()
            };
            let quoted = if key == "port" {
                value.to_owned()
            } else {
                format!("{value:?}")
            };
            let name = if section == "model" && key != "path" {
                "path = \"/m.gguf\"\n"
            } else {
                ""
            };
            let head = if section == "upstream" {
                "[[upstream]]"
            } else {
                &format!("[{section}]")
            };
            let text = format!("{bare}{head}\n{name}{key} = {quoted}\n{with}\n");
            let places = all_of(&of(&read(&text), Path::new("/p/config/andond.toml"), &[]));
            let expected = match key {
                "host" => PORT_DNS.to_string(),
                "port" | "listen" | "url" | "proxy" => {
                    let port = value.rsplit(':').next().unwrap_or(value);
                    port.trim_end_matches("/v1").to_owned()
                }
                "dir" | "sys-dir" | "proc-dir" => value.to_owned(),
                _ => Path::new(value)
                    .parent()
                    .expect("a folder")
                    .display()
                    .to_string(),
            };
            assert!(places.contains(&expected), "{section}.{key}: {places:?}");
            let own = places.iter().filter(|place| place.starts_with("/p/"));
            for place in own {
                assert!(
                    place.starts_with("/p/config") || place.starts_with(&expected),
                    "{section}.{key} opens {place}"
                );
            }
        }
    }

    #[test]
    fn no_key_that_names_a_place_is_forgotten() {
        let text = crate::config::tests::shown();
        let shown: toml::Table = text.parse().expect("TOML");
        let is_place = |key: &str, value: &str| {
            value.starts_with('/')
                || value.contains("://")
                || value.parse::<std::net::SocketAddr>().is_ok()
                || ["host", "port", "listen", "url", "socket"].contains(&key)
                || [
                    "-file", "-dir", "-socket", "-listen", "-port", "-url", "-host",
                ]
                .iter()
                .any(|end| key.ends_with(end))
        };
        let sections = shown.iter().filter(|(section, _)| *section != "task");
        let tables = sections.flat_map(|(section, value)| {
            let tables = value
                .as_array()
                .map_or(std::slice::from_ref(value), Vec::as_slice);
            tables.iter().map(move |table| (section, table))
        });
        for (section, table) in tables {
            for (key, value) in table.as_table().expect("a section") {
                let text = match value {
                    toml::Value::String(text) => text.clone(),
                    other => other.to_string(),
                };
                if is_place(key, &text) {
                    assert!(
                        KEYS.iter()
                            .any(|known| (known.0, known.1) == (section, key)),
                        "{section}.{key} names a place: grant it here, and test it"
                    );
                }
            }
        }
    }

    #[test]
    fn a_file_in_a_folder_of_everybody_is_granted_alone() {
        for (path, folder) in [
            ("srv models m.gguf", true),
            ("var lib andon m.gguf", true),
            ("m.gguf", false),
            ("srv m.gguf", false),
            ("home m.gguf", false),
            ("home somebody m.gguf", false),
            ("home somebody models m.gguf", true),
            ("mnt stick m.gguf", false),
        ] {
            let path = format!("/{}", path.replace(' ', "/"));
            let mut read = BTreeSet::new();
            replaceable(Path::new(&path), &mut read);
            assert!(read.contains(Path::new(&path)));
            let parent = Path::new(&path).parent().expect("a folder");
            assert_eq!(read.contains(parent), folder, "{path}");
        }
    }

    #[test]
    fn name_servers_that_are_not_there_yet_open_no_folder_of_everybody() {
        let folder = tempfile::tempdir().expect("a folder");
        let own = folder.path().canonicalize().expect("it is there");
        std::fs::create_dir(own.join("manager")).expect("made");
        let granted = |target: &Path| {
            let link = own.join("resolv.conf");
            drop(std::fs::remove_file(&link));
            std::os::unix::fs::symlink(target, &link).expect("a link");
            let mut read = BTreeSet::new();
            name_servers(&link, &mut read);
            read
        };
        let up = "../".repeat(own.components().count());
        for target in [
            "/no-such-manager/resolv.conf",
            "/run/no-such-manager/resolv.conf",
            "/resolv.conf",
            &format!("{up}run/no-such-manager/resolv.conf"),
        ] {
            let read = granted(Path::new(target));
            assert!(
                !read.iter().any(|path| is_shared(path) && path.is_dir()),
                "{read:?}"
            );
        }
        let set = |paths: &[&str]| paths.iter().map(|path| own.join(path)).collect();
        let there: BTreeSet<PathBuf> = set(&["manager", "manager/resolv.conf"]);
        assert_eq!(granted(Path::new("manager/resolv.conf")), there);
        let later: BTreeSet<PathBuf> = set(&["manager"]);
        assert_eq!(granted(Path::new("manager/later/resolv.conf")), later);
    }

    #[test]
    fn sockets_that_were_passed_open_no_folder() {
        let config = read(
            "[model]\nname = \"m\"\n[http]\nsocket = \"/p/http/s\"\n[wire]\nsocket = \"/p/wire/s\"\n",
        );
        let sockets = |passed: &[&Path]| of(&config, Path::new("/c"), passed).sockets;
        let (http, wire) = (Path::new("/p/http/s"), Path::new("/p/wire/s"));
        assert_eq!(
            sockets(&[]),
            ["/p/http", "/p/wire"].map(PathBuf::from).into()
        );
        assert_eq!(sockets(&[http]), [PathBuf::from("/p/wire")].into());
        assert!(sockets(&[wire, http]).is_empty());
    }

    #[test]
    fn every_part_of_a_split_model_is_granted() {
        let mut read = BTreeSet::new();
        weights(Path::new("/mnt/stick/m-00002-of-00003.gguf"), &mut read);
        let parts =
            (1..=3).map(|part| PathBuf::from(format!("/mnt/stick/m-{part:05}-of-00003.gguf")));
        assert_eq!(read, parts.collect());
    }

    #[test]
    fn devices_are_opened_for_a_driver_only() {
        let of_backend = |name: &str| {
            let text = format!("[model]\nname = \"m\"\n[engine]\nbackend = {name:?}\n");
            let config = read(&text);
            let places = of(&config, Path::new("/c"), &[]);
            (wants_driver(&config), places)
        };
        let (wanted, places) = of_backend("cpu");
        assert!(!wanted && places.devices.is_empty());
        let (wanted, places) = of_backend("cuda");
        assert!(wanted && places.read.contains(Path::new("/usr/share/nvidia")));
        assert_eq!(places.devices, devices());
        let (wanted, places) = of_backend("auto");
        assert!(wanted || places.devices.is_empty());
    }

    #[test]
    fn what_is_off_opens_nothing() {
        let quiet = "[model]\nname = \"m\"\n[spool]\ndurable = \"off\"\ndir = \"/p/spool\"\n[http]\nenabled = false\n\
            listen = \"127.0.0.1:4001\"\ntoken-file = \"/p/token/t\"\n[wire]\nenabled = false\n[mqtt]\nport = 4002\nca-file = \"/p/ca/c\"\ntls = true\n\
            [audit]\ndir = \"/p/audit\"\n[ledger]\ndir = \"/p/ledger\"\n";
        let places = of(&read(quiet), Path::new("/etc/andon/andond.toml"), &[]);
        assert!(places.sockets.is_empty() && places.listen.is_empty() && places.connect.is_empty());
        assert!(!all_of(&places).iter().any(|place| place.starts_with("/p/")));
    }
}
