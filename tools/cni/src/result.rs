//! What is answered: results and errors, in the form that the version asked for has.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use serde_json::{Map, Value, json};
use tonic::{Code, Status};
use wirelane_proto::v1::CniAddResponse;

use crate::{
    call::Call,
    config::{Config, list},
};

/// Where the default routes of every pod lead.
pub const GATEWAYS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1)), IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1))];

/// An error, with the code that the specification has for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    code: u32,
    message: &'static str,
    details: String,
}

/// Codes of our own begin here.
const FAILED: u32 = 100;
const TAKEN: u32 = 101;
const EXHAUSTED: u32 = 102;

impl Error {
    /// The version is none that is spoken, or does not have what is asked.
    pub fn version(version: &str, supported: &[&str]) -> Self {
        let details = format!("\"{version}\" is asked for, and {} is supported", supported.join(", "));
        Self { code: 1, message: "incompatible CNI version", details }
    }

    /// A variable of the environment is missing or wrong.
    pub fn environment(variable: &str, reason: &str) -> Self {
        let details = format!("{variable}: {reason}");
        Self { code: 4, message: "invalid environment variable", details }
    }

    /// The system says no.
    pub fn io(doing: &str, error: &io::Error) -> Self {
        Self { code: 5, message: "I/O failure", details: format!("{doing}: {error}") }
    }

    /// The configuration is no JSON, or something else than a configuration.
    pub fn decode(error: &serde_json::Error) -> Self {
        Self { code: 6, message: "the network configuration cannot be decoded", details: error.to_string() }
    }

    /// The configuration says what cannot be meant.
    pub fn config(reason: &str) -> Self {
        Self { code: 7, message: "invalid network configuration", details: reason.to_owned() }
    }

    /// It may go in a moment.
    pub fn again(reason: &str) -> Self {
        Self { code: 11, message: "try again later", details: reason.to_owned() }
    }

    /// ADD has no chance: 50, or 51 if pods that are attached are concerned, too.
    pub fn unready(code: u32, reason: &str) -> Self {
        Self { code, message: "the plugin is not available", details: reason.to_owned() }
    }

    /// It does not go.
    pub fn failed(reason: &str) -> Self {
        Self { code: FAILED, message: "failed", details: reason.to_owned() }
    }

    /// What the control process says.
    pub fn of(status: &Status) -> Self {
        let (code, message) = match status.code() {
            Code::NotFound => (3, "the container is unknown"),
            Code::InvalidArgument if status.message().starts_with("network namespace") => {
                (4, "invalid environment variable: CNI_NETNS")
            }
            Code::InvalidArgument => (7, "invalid network configuration"),
            Code::AlreadyExists => (TAKEN, "it is taken"),
            Code::ResourceExhausted => (EXHAUSTED, "no address is left"),
            _ => return Self::failed(status.message()),
        };
        Self { code, message, details: status.message().to_owned() }
    }

    /// The whole reason.
    pub fn details(&self) -> &str {
        &self.details
    }

    /// As it is written.
    pub fn to_json(&self, version: &str) -> Value {
        let Self { code, message, details } = self;
        json!({ "cniVersion": version, "code": code, "msg": message, "details": details })
    }
}

/// What ADD made, after what the plugins before it have made.
pub fn success(call: &Call, config: &Config, added: &CniAddResponse) -> Value {
    let mut result = config.prev_result.clone().unwrap_or_default();
    result.insert("cniVersion".to_owned(), json!(config.cni_version));
    let before = list(&result, "interfaces").count();
    let mut host = json!({ "name": added.host_interface, "mac": mac(&added.host_mac) });
    let mut container =
        json!({ "name": call.owner.interface, "mac": mac(&added.mac), "sandbox": call.netns });
    if config.cni_version == "1.1.0" {
        for interface in [&mut host, &mut container] {
            interface["mtu"] = json!(added.mtu);
        }
    }
    extend(&mut result, "interfaces", [host, container]);
    for pair in &added.addresses {
        let (Some(address), Some(gateway)) = (address(&pair.address), address(&pair.gateway)) else {
            continue;
        };
        let (length, family) = if address.is_ipv4() { (32, "4") } else { (128, "6") };
        let mut ip = json!({
            "address": format!("{address}/{length}"),
            "gateway": gateway.to_string(),
            "interface": before + 1,
        });
        if ["0.3.1", "0.4.0"].contains(&&*config.cni_version) {
            ip["version"] = json!(family);
        }
        extend(&mut result, "ips", [ip]);
        let everywhere = if address.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
        extend(&mut result, "routes", [json!({ "dst": everywhere, "gw": gateway.to_string() })]);
    }
    if let Some(dns) = dns(config, &result) {
        result.insert("dns".to_owned(), dns);
    }
    Value::Object(result)
}

/// What resolvers are told: by the runtime, else by a plugin before this one, else by the network.
fn dns(config: &Config, result: &Map<String, Value>) -> Option<Value> {
    if let Some(dns) = &config.runtime_config.dns {
        let lists = [("nameservers", &dns.servers), ("search", &dns.searches), ("options", &dns.options)];
        let named = lists.into_iter().filter(|(_, list)| !list.is_empty());
        return Some(named.map(|(name, list)| (name.to_owned(), json!(list))).collect());
    }
    let is_said = result.get("dns").and_then(Value::as_object).is_some_and(|dns| !dns.is_empty());
    (!is_said && !config.dns.is_empty()).then(|| Value::Object(config.dns.clone()))
}

/// Adds to a list of the result, which may not be there yet.
fn extend(result: &mut Map<String, Value>, key: &str, values: impl IntoIterator<Item = Value>) {
    let list = result.entry(key).or_insert_with(|| json!([]));
    if !list.is_array() {
        // `null`, as some write a list without entries.
        *list = json!([]);
    }
    if let Some(list) = list.as_array_mut() {
        list.extend(values);
    }
}

fn mac(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let ipv4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    ipv4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

#[cfg(test)]
mod tests {
    use wirelane_proto::v1::{CniAddress, CniOwner};

    use super::*;

    fn result_of(config: &Value) -> Value {
        let owner = CniOwner { container: "c".into(), interface: "eth0".into() };
        let call = Call { owner, netns: "/run/netns/c".into(), pod: None };
        let added = CniAddResponse {
            host_interface: "wl0123456789ab".into(),
            host_mac: vec![2, 0, 0, 0, 0, 1],
            mac: vec![10, 0, 0, 0, 0, 255],
            mtu: 1450,
            addresses: vec![
                CniAddress { address: vec![10, 244, 1, 2], gateway: vec![169, 254, 1, 1] },
                CniAddress {
                    address: "fd00::2".parse::<Ipv6Addr>().unwrap().octets().to_vec(),
                    gateway: "fe80::1".parse::<Ipv6Addr>().unwrap().octets().to_vec(),
                },
            ],
        };
        success(&call, &Config::parse(config.to_string().as_bytes()).unwrap(), &added)
    }

    #[test]
    fn each_version_has_its_form() {
        for (version, has_family, has_mtu) in
            [("0.3.1", true, false), ("0.4.0", true, false), ("1.0.0", false, false), ("1.1.0", false, true)]
        {
            let mut expected = json!({
                "cniVersion": version,
                "interfaces": [
                    { "name": "wl0123456789ab", "mac": "02:00:00:00:00:01" },
                    { "name": "eth0", "mac": "0a:00:00:00:00:ff", "sandbox": "/run/netns/c" },
                ],
                "ips": [
                    { "address": "10.244.1.2/32", "gateway": "169.254.1.1", "interface": 1 },
                    { "address": "fd00::2/128", "gateway": "fe80::1", "interface": 1 },
                ],
                "routes": [{ "dst": "0.0.0.0/0", "gw": "169.254.1.1" }, { "dst": "::/0", "gw": "fe80::1" }],
            });
            for i in 0..2 {
                if has_family {
                    expected["ips"][i]["version"] = json!(["4", "6"][i]);
                }
                if has_mtu {
                    expected["interfaces"][i]["mtu"] = json!(1450);
                }
            }
            assert_eq!(result_of(&json!({ "cniVersion": version, "name": "n" })), expected);
        }
    }

    #[test]
    fn what_came_before_stays() {
        let result = result_of(&json!({
            "cniVersion": "1.0.0",
            "name": "n",
            "dns": { "nameservers": ["10.96.0.10"] },
            "prevResult": {
                "cniVersion": "1.0.0",
                "interfaces": [{ "name": "net1", "sandbox": "/run/netns/c" }],
                "ips": [{ "address": "192.0.2.2/24", "interface": 0 }],
                "routes": null,
                "dns": {},
                "other": "kept",
            },
        }));
        assert_eq!(result["interfaces"].as_array().unwrap().len(), 3);
        assert_eq!(result["ips"][0]["interface"], 0);
        assert_eq!((&result["ips"][1]["interface"], &result["ips"][2]["interface"]), (&json!(2), &json!(2)));
        assert_eq!(result["routes"].as_array().unwrap().len(), 2);
        assert_eq!(result["other"], "kept");
        assert_eq!(result["dns"]["nameservers"][0], "10.96.0.10");
    }

    #[test]
    fn the_runtimes_word_on_resolvers_counts_first() {
        let dns = json!({ "servers": ["10.0.0.53"], "searches": ["a.example"], "options": [] });
        let result = result_of(&json!({
            "cniVersion": "1.0.0",
            "name": "n",
            "dns": { "nameservers": ["10.96.0.10"] },
            "runtimeConfig": { "dns": dns },
        }));
        assert_eq!(result["dns"], json!({ "nameservers": ["10.0.0.53"], "search": ["a.example"] }));
    }
}
