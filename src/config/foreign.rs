//! Keys of Firecracker's configuration file that mean nothing here: they are left out, and the user hears of those that ask for
//! something. What a guest would miss (a metadata service, a disk of another process) is not among them.

use serde_json::{Map, Value};

/// Where they stand, and which they are. The first are those of the file itself.
const FOREIGN: [(&str, &[&str]); 6] = [
    ("", &["logger", "metrics", "balloon", "cpu-config"]),
    ("boot-source", &[]),
    ("machine-config", &["smt", "track_dirty_pages", "cpu_template"]),
    ("drives", &["rate_limiter"]),
    ("network-interfaces", &["rx_rate_limiter", "tx_rate_limiter"]),
    ("entropy", &["rate_limiter"]),
];

/// Leaves them out, and everything that is `null`: as if it were not there. True if there was any.
pub fn leave_out(file: &mut Map<String, Value>) -> bool {
    let mut found = false;
    for (place, keys) in FOREIGN {
        let mut objects: Vec<&mut Map<String, Value>> = match place {
            "" => vec![file],
            _ => match file.get_mut(place) {
                Some(Value::Object(object)) => vec![object],
                Some(Value::Array(list)) => list.iter_mut().filter_map(Value::as_object_mut).collect(),
                _ => vec![],
            },
        };
        objects.iter_mut().for_each(|object| found |= leave_out_of(object, place, keys));
    }
    found
}

fn leave_out_of(object: &mut Map<String, Value>, place: &str, keys: &[&str]) -> bool {
    let before = object.len();
    object.retain(|key, value| {
        let asks = !matches!(value, Value::Null | Value::Bool(false)) && *value != "None";
        let foreign = keys.contains(&key.as_str());
        if foreign && asks {
            let separator = if place.is_empty() { "" } else { "." };
            log::warn!("the configuration's `{place}{separator}{key}` has no effect: rvmm has no such thing");
        }
        !foreign && *value != Value::Null
    });
    object.len() < before
}
