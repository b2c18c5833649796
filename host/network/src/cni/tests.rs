//! Real processes: the plugins are shell scripts.

use super::result::convert;
use super::{
    Attachment, Bandwidth, Cache, Cni, CniResult, NetworkList, PortMapping, RuntimeSettings,
    Version, config,
};
use crate::NetworkError;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};
use tempfile::TempDir;

struct Plugins {
    directory: TempDir,
}

impl Plugins {
    fn new() -> Self {
        Self {
            directory: TempDir::new().unwrap(),
        }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Makes a plugin of a shell script.
    fn add(&self, name: &str, script: &str) {
        let path = self.path().join(name);
        fs::write(
            &path,
            format!("#!/bin/sh\ncd {}\n{script}\n", self.path().display()),
        )
        .unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn cni(&self) -> Cni {
        Cni {
            plugin_directories: vec!["/nonexistent".into(), self.path().to_owned()],
            limit: Duration::from_secs(30),
        }
    }

    /// What a plugin has written to a file.
    fn said(&self, file: &str) -> String {
        fs::read_to_string(self.path().join(file)).unwrap_or_default()
    }
}

fn list(version: &str, plugins: &Value) -> NetworkList {
    let text = json!({ "name": "net", "cniVersion": version, "plugins": plugins });
    NetworkList::parse(text.to_string().as_bytes()).unwrap()
}

fn attachment() -> Attachment {
    Attachment {
        pod: "pod-1".into(),
        interface: "eth0".into(),
        netns: "/run/netns/pod-1".into(),
        args: "IgnoreUnknown=1;K8S_POD_NAME=x".into(),
        runtime: RuntimeSettings {
            port_mappings: vec![PortMapping {
                host_port: 8080,
                container_port: 80,
                protocol: "tcp".into(),
                host_ip: String::new(),
            }],
            bandwidth: Some(Bandwidth {
                ingress_rate: 1000,
                ..Default::default()
            }),
            ..Default::default()
        },
        list: Default::default(),
        result: None,
    }
}

const RECORD: &str = r#"input=$(cat); echo "$CNI_COMMAND $CNI_CONTAINERID $CNI_NETNS $CNI_IFNAME $CNI_ARGS" >>"$(basename $0).calls"
echo "$input" >>"$(basename $0).inputs"; echo "$(basename $0)" >>order"#;

#[tokio::test]
async fn a_list_is_added_in_order_and_deleted_in_reverse() {
    let plugins = Plugins::new();
    plugins.add("first", &format!("{RECORD}\necho '{{\"cniVersion\":\"1.0.0\",\"interfaces\":[{{\"name\":\"eth0\",\"sandbox\":\"/x\"}}],\"ips\":[{{\"address\":\"10.0.0.2/24\",\"interface\":0}}],\"unknown\":5}}'"));
    plugins.add("second", &format!("{RECORD}\n[ \"$CNI_COMMAND\" = DEL ] || echo \"$input\" | sed 's/.*\"prevResult\"://; s/,\"runtimeConfig.*//'"));
    let list = list(
        "0.4.0",
        &json!([{ "type": "first", "own": 1, "capabilities": { "bandwidth": false } },
            { "type": "second", "capabilities": { "portMappings": true } }]),
    );
    let mut attachment = attachment();
    let cni = plugins.cni();
    let result = cni.add(&list, &attachment).await.unwrap();
    assert_eq!(result["unknown"], 5, "what is not known goes on");
    assert_eq!(result["ips"][0]["version"], "4", "as 0.4.0 has it");
    let parsed = CniResult::parse(&result).unwrap();
    assert_eq!(
        parsed.addresses("eth0").collect::<Vec<_>>(),
        [std::net::IpAddr::from([10, 0, 0, 2])]
    );
    assert_eq!(parsed.addresses("eth1").count(), 0);
    attachment.result = Some(result.clone());
    cni.check(&list, &attachment).await.unwrap();
    cni.delete(&list, &attachment).await.unwrap();
    assert_eq!(
        plugins.said("order"),
        "first\nsecond\nfirst\nsecond\nsecond\nfirst\n"
    );
    let calls = plugins.said("first.calls");
    assert!(
        calls.starts_with("ADD pod-1 /run/netns/pod-1 eth0 IgnoreUnknown=1;K8S_POD_NAME=x\nCHECK"),
        "{calls}"
    );
    let inputs = |plugin: &str| -> Vec<Value> {
        let text = plugins.said(&format!("{plugin}.inputs"));
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    };
    let (first, second) = (inputs("first"), inputs("second"));
    assert_eq!(
        first[0],
        json!({ "type": "first", "own": 1, "name": "net", "cniVersion": "0.4.0" })
    );
    assert_eq!(
        second[0]["runtimeConfig"],
        json!({ "portMappings": [{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }] })
    );
    assert_eq!(
        first[2]["prevResult"], result,
        "DEL has the result of the whole list"
    );
}

/// Runs ADD of one script; returns the error.
async fn failure(script: &str, limit: Duration) -> (NetworkError, Plugins) {
    let plugins = Plugins::new();
    plugins.add("bad", script);
    let cni = Cni {
        limit,
        ..plugins.cni()
    };
    let error = cni
        .add(&list("1.0.0", &json!([{ "type": "bad" }])), &attachment())
        .await
        .unwrap_err();
    (error, plugins)
}

#[tokio::test]
async fn every_way_to_fail_is_one_clear_error() {
    for (script, words) in [
        (
            "kill -9 $$",
            "failed at ADD: signal 9 ended it and said nothing",
        ),
        (
            "echo lost my way >&2; exit 3",
            "it exited with status 3; it said: lost my way",
        ),
        ("echo hello", "its output is not JSON"),
        ("echo '[1]'", "its output is not an object"),
        ("true", "its output is not JSON"),
        (
            "echo '{\"ips\":[{\"address\":\"10.0.0.300/24\"}]}'",
            "it is not a result",
        ),
        (
            "echo '{\"ips\":[{\"address\":\"10.0.0.3/24\",\"interface\":4}]}'",
            "interface 4",
        ),
        (
            "head -c 2000000 /dev/zero; cat >/dev/null",
            "longer than 1048576 bytes",
        ),
        (
            "echo '{\"code\":11,\"msg\":\"try later\",\"details\":\"busy\"}'; exit 1",
            "refused ADD: try later: busy (code 11)",
        ),
    ] {
        let (error, _) = failure(script, Duration::from_secs(30)).await;
        let text = error.to_string();
        assert!(
            text.contains("\"bad\"") && text.contains(words),
            "{script}: {text}"
        );
    }
    let cni = Plugins::new().cni();
    let error = cni
        .add(&list("1.0.0", &json!([{ "type": "none" }])), &attachment())
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("\"none\" is in none of /nonexistent, "),
        "{error}"
    );
}

/// A process that has been killed is gone soon after it has closed its files.
async fn goes(pid: &str) -> bool {
    let gone = async {
        while !is_gone(pid) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    !pid.is_empty()
        && tokio::time::timeout(Duration::from_secs(20), gone)
            .await
            .is_ok()
}

fn is_gone(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_none_or(|(_, rest)| rest.starts_with('Z'))
}

#[tokio::test]
async fn a_plugin_that_hangs_is_killed_with_all_it_has_started() {
    let began = Instant::now();
    let script = "sleep 1000 & echo $! >child; sleep 1000";
    let (error, plugins) = failure(script, Duration::from_millis(500)).await;
    assert!(
        matches!(error, NetworkError::PluginTimeout { .. }),
        "{error}"
    );
    assert!(began.elapsed() < Duration::from_secs(20));
    let child = plugins.said("child");
    assert!(goes(&child).await, "{child}");
}

#[tokio::test]
async fn a_plugin_that_leaves_a_process_behind_does_not_hold_the_pod() {
    let plugins = Plugins::new();
    plugins.add("leaves", "sleep 1000 & echo $! >child; echo '{}'");
    let list = list("1.0.0", &json!([{ "type": "leaves" }]));
    plugins.cni().add(&list, &attachment()).await.unwrap();
    assert!(goes(&plugins.said("child")).await);
}

#[tokio::test]
async fn whoever_does_not_wait_leaves_no_plugin_behind() {
    let plugins = Plugins::new();
    plugins.add("slow", "echo $$ >child; sleep 1000");
    let list = list("1.0.0", &json!([{ "type": "slow" }]));
    let (cni, attachment) = (plugins.cni(), attachment());
    let started = async {
        while plugins.said("child").is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        _ = cni.add(&list, &attachment) => panic!("it ended"),
        () = started => {}
    }
    assert!(goes(&plugins.said("child")).await);
}

#[tokio::test]
async fn gc_and_status_are_executed_since_1_1_only() {
    let plugins = Plugins::new();
    plugins.add("new", &format!("{RECORD}\nif [ \"$CNI_COMMAND\" = STATUS ] && [ -e down ]; then echo '{{\"code\":50,\"msg\":\"agent is down\"}}'; exit 1; fi"));
    let cni = plugins.cni();
    let plugin = json!([{ "type": "new" }]);
    let old = list("1.0.0", &plugin);
    cni.status(&old).await.unwrap();
    cni.collect(&old, &[]).await.unwrap();
    assert_eq!(plugins.said("new.calls"), "");
    let new = list("1.1.0", &plugin);
    cni.status(&new).await.unwrap();
    cni.collect(&new, &[("pod-1".into(), "eth0".into())])
        .await
        .unwrap();
    let last = plugins
        .said("new.inputs")
        .lines()
        .last()
        .unwrap()
        .to_owned();
    let last: Value = serde_json::from_str(&last).unwrap();
    assert_eq!(
        last["cni.dev/valid-attachments"],
        json!([{ "containerID": "pod-1", "ifname": "eth0" }])
    );
    fs::write(plugins.path().join("down"), "").unwrap();
    let error = cni.status(&new).await.unwrap_err().to_string();
    assert!(error.contains("agent is down (code 50)"), "{error}");
    let missing = list("1.0.0", &json!([{ "type": "gone" }]));
    let error = cni.status(&missing).await.unwrap_err();
    assert!(
        matches!(error, NetworkError::PluginMissing { .. }),
        "{error}"
    );
}

/// Found by fuzzing: a number that no integer holds.
#[test]
fn what_is_not_known_stays_what_it_was() {
    let text = br#"{"cniVersion":"1.0.0","dns":{},"other":20000000000000017286664110841848719}"#;
    for version in [Version::V100, Version::V110] {
        let once = convert(text, version).unwrap();
        let twice = convert(once.to_string().as_bytes(), version).unwrap();
        assert_eq!(once, twice);
    }
}

#[test]
fn results_of_all_versions_become_the_lists() {
    let old = br#"{"cniVersion":"0.2.0","ip4":{"ip":"10.0.0.2/24","gateway":"10.0.0.1","routes":[{"dst":"0.0.0.0/0"}]},"ip6":{"ip":"fd00::2/64"},"dns":{"nameservers":["10.0.0.1"]}}"#;
    let value = convert(old, Version::V110).unwrap();
    assert_eq!(
        value,
        json!({
            "cniVersion": "1.1.0",
            "ips": [{ "address": "10.0.0.2/24", "gateway": "10.0.0.1" }, { "address": "fd00::2/64" }],
            "routes": [{ "dst": "0.0.0.0/0" }],
            "dns": { "nameservers": ["10.0.0.1"] },
        })
    );
    let parsed = CniResult::parse(&value).unwrap();
    assert_eq!((parsed.ips.len(), parsed.dns.nameservers.len()), (2, 1));
    let new = br#"{"cniVersion":"1.1.0","interfaces":[{"name":"eth0","mtu":1400,"socketPath":"/x"}],"ips":[{"address":"fd00::2/64"}],"routes":[{"dst":"::/0","mtu":1300,"table":7}]}"#;
    let value = convert(new, Version::V031).unwrap();
    assert_eq!(
        (&value["cniVersion"], &value["ips"][0]["version"]),
        (&json!("0.3.1"), &json!("6"))
    );
    assert_eq!(value["interfaces"][0]["socketPath"], "/x");
}

fn problem(text: &str) -> String {
    NetworkList::parse(text.as_bytes()).unwrap_err()
}

#[test]
fn configurations_that_cannot_be_used_say_why() {
    for (text, words) in [
        ("{", "not JSON"),
        ("[]", "not an object"),
        (
            r#"{"cniVersion":"1.0.0","plugins":[{"type":"x"}]}"#,
            "name is \"\"",
        ),
        (
            r#"{"name":"../x","cniVersion":"1.0.0"}"#,
            "name is \"../x\"",
        ),
        (
            r#"{"name":"x","plugins":[{"type":"x"}]}"#,
            "cniVersion is missing",
        ),
        (
            r#"{"name":"x","cniVersion":"9.0.0","plugins":[{"type":"x"}]}"#,
            "9.0.0",
        ),
        (
            r#"{"name":"x","cniVersion":"1.0.0","plugins":[]}"#,
            "0 entries",
        ),
        (
            r#"{"name":"x","cniVersion":"1.0.0","plugins":[{"type":"../sh"}]}"#,
            "\"../sh\"",
        ),
        (
            r#"{"name":"x","cniVersion":"1.0.0","plugins":[{"type":""}]}"#,
            "name of a program",
        ),
        (
            r#"{"name":"x","cniVersion":"1.0.0","disableGC":3,"plugins":[{"type":"x"}]}"#,
            "disableGC",
        ),
    ] {
        assert!(problem(text).contains(words), "{text}: {}", problem(text));
    }
}

#[test]
fn the_first_file_by_name_is_the_nodes_network() {
    let directory = TempDir::new().unwrap();
    let empty = directory.path().join("empty");
    let path = directory.path().join("net.d");
    let directories = [empty, path.clone()];
    let error = config::find(&directories).unwrap_err();
    assert!(
        matches!(error, NetworkError::NoConfiguration { .. }),
        "{error}"
    );
    fs::create_dir(&path).unwrap();
    fs::write(
        path.join("20-late.conflist"),
        r#"{"name":"late","cniVersion":"1.0.0","plugins":[{"type":"x"}]}"#,
    )
    .unwrap();
    fs::write(path.join("00-not.txt"), "no configuration").unwrap();
    assert_eq!(config::find(&directories).unwrap().name, "late");
    fs::write(
        path.join("10-single.conf"),
        r#"{"name":"single","cniVersion":"0.3.1","type":"bridge","bridge":"b"}"#,
    )
    .unwrap();
    let single = config::find(&directories).unwrap();
    assert_eq!(
        (single.name.as_str(), single.plugins[0].kind.as_str()),
        ("single", "bridge")
    );
    fs::write(path.join("05-broken.conflist"), "{").unwrap();
    let error = config::find(&directories).unwrap_err().to_string();
    assert!(
        error.contains("05-broken.conflist") && error.contains("not JSON"),
        "{error}"
    );
    fs::write(
        path.join("05-broken.conflist"),
        r#"{"name":"more","cniVersions":["0.4.0","1.1.0","7.0.0"],"plugins":[{"type":"x"}],"loadOnlyInlinedPlugins":false}"#,
    )
    .unwrap();
    fs::create_dir(path.join("more")).unwrap();
    fs::write(path.join("more/10-y.conf"), r#"{"type":"y"}"#).unwrap();
    let more = config::find(&directories).unwrap();
    assert_eq!((more.version, more.plugins.len()), (Version::V110, 2));
    assert_eq!(NetworkList::from_object(more.to_object()).unwrap(), more);
}

#[test]
fn attachments_are_there_after_a_restart() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("attachments");
    let mut one = attachment();
    one.list = list("1.1.0", &json!([{ "type": "x" }])).to_object();
    Cache::open(&path).unwrap().put(&one).unwrap();
    one.result = Some(json!({ "ips": [] }));
    Cache::open(&path).unwrap().put(&one).unwrap();
    let cache = Cache::open(&path).unwrap();
    assert_eq!(cache.get("pod-1").unwrap(), Some(one));
    assert_eq!(cache.pods().unwrap(), ["pod-1"]);
    cache.remove("pod-1").unwrap();
    cache.remove("pod-1").unwrap();
    assert_eq!(cache.get("pod-1").unwrap(), None);
}
