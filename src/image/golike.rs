//! JSON as Go reads it, for that is what writes and reads images everywhere else.
//!
//! Go's `encoding/json` finds a field whatever the case of its key, takes `null` for a value that was left out, and knows
//! no field that must be there. What it makes of a document is written out here in the one form that the types of
//! `oci-spec` take: keys as the specifications spell them, no nulls.

use serde_json::{Map, Value};

/// What a value is to be.
#[derive(Debug)]
pub(super) enum Shape {
    /// Taken as it is: a text, a number, a truth value.
    Plain,
    /// A list of texts, for which Docker takes a single text as well.
    Words,
    /// A list.
    List(&'static Shape),
    /// A map, whose keys are data.
    Map(&'static Shape),
    /// Fields with names.
    Fields(&'static [(&'static str, Shape)]),
}

use Shape::{Fields, List, Plain, Words};

const TEXTS: Shape = Shape::Map(&Plain);
const NOTHINGS: Shape = Shape::Map(&Fields(&[]));

const PLATFORM: &[(&str, Shape)] = &[
    ("architecture", Plain),
    ("os", Plain),
    ("os.version", Plain),
    ("os.features", List(&Plain)),
    ("variant", Plain),
    ("features", List(&Plain)),
];

const DESCRIPTOR: Shape = Fields(&[
    ("mediaType", Plain),
    ("digest", Plain),
    ("size", Plain),
    ("urls", List(&Plain)),
    ("annotations", TEXTS),
    ("data", Plain),
    ("platform", Fields(PLATFORM)),
    ("artifactType", Plain),
]);

/// An index of images.
pub(super) const INDEX: Shape = Fields(&[
    ("schemaVersion", Plain),
    ("mediaType", Plain),
    ("artifactType", Plain),
    ("manifests", List(&DESCRIPTOR)),
    ("subject", DESCRIPTOR),
    ("annotations", TEXTS),
]);

/// A manifest.
pub(super) const MANIFEST: Shape = Fields(&[
    ("schemaVersion", Plain),
    ("mediaType", Plain),
    ("artifactType", Plain),
    ("config", DESCRIPTOR),
    ("layers", List(&DESCRIPTOR)),
    ("subject", DESCRIPTOR),
    ("annotations", TEXTS),
]);

/// An image's config.
pub(super) const CONFIG: Shape = Fields(&[
    ("created", Plain),
    ("author", Plain),
    ("architecture", Plain),
    ("os", Plain),
    ("os.version", Plain),
    ("os.features", List(&Plain)),
    ("variant", Plain),
    ("config", RUN),
    ("rootfs", Fields(&[("type", Plain), ("diff_ids", List(&Plain))])),
    (
        "history",
        List(&Fields(&[
            ("created", Plain),
            ("author", Plain),
            ("created_by", Plain),
            ("comment", Plain),
            ("empty_layer", Plain),
        ])),
    ),
]);

const RUN: Shape = Fields(&[
    ("User", Plain),
    ("ExposedPorts", NOTHINGS),
    ("Env", List(&Plain)),
    ("Entrypoint", Words),
    ("Cmd", Words),
    ("Volumes", NOTHINGS),
    ("WorkingDir", Plain),
    ("Labels", TEXTS),
    ("StopSignal", Plain),
    ("StopTimeout", Plain),
    ("ArgsEscaped", Plain),
    ("OnBuild", List(&Plain)),
    ("Shell", Words),
    (
        "Healthcheck",
        Fields(&[
            ("Test", List(&Plain)),
            ("Interval", Plain),
            ("Timeout", Plain),
            ("StartPeriod", Plain),
            ("StartInterval", Plain),
            ("Retries", Plain),
        ]),
    ),
]);

/// The `manifest.json` of `docker save`.
pub(super) const SAVED: Shape =
    List(&Fields(&[("Config", Plain), ("RepoTags", List(&Plain)), ("Layers", List(&Plain))]));

/// Reads a document in a shape. What isn't of that shape stays as it is, for whoever reads it next to refuse.
pub(super) fn read(text: &[u8], shape: &Shape) -> serde_json::Result<Value> {
    serde_json::from_slice(text).map(|value| fit(value, shape))
}

/// Does as [`read`], of a document that is parsed.
pub(super) fn fit(value: Value, shape: &Shape) -> Value {
    match (shape, value) {
        (Words, Value::String(text)) => Value::Array(vec![Value::String(text)]),
        (Words, Value::Array(list)) => {
            Value::Array(list.into_iter().map(|item| element(item, &Plain)).collect())
        }
        (List(inner), Value::Array(list)) => {
            Value::Array(list.into_iter().map(|item| element(item, inner)).collect())
        }
        (Shape::Map(inner), Value::Object(map)) => {
            Value::Object(map.into_iter().map(|(key, item)| (key, element(item, inner))).collect())
        }
        (Fields(fields), Value::Object(map)) => Value::Object(fit_fields(map, fields)),
        (_, value) => value,
    }
}

/// Returns what is in a list or a map is there; `null` is an empty one of its kind.
fn element(value: Value, shape: &Shape) -> Value {
    match (shape, value) {
        (Plain, Value::Null) => Value::String(String::new()),
        (Words | List(_), Value::Null) => Value::Array(Vec::new()),
        (Shape::Map(_) | Fields(_), Value::Null) => Value::Object(Map::new()),
        (shape, value) => fit(value, shape),
    }
}

fn fit_fields(map: Map<String, Value>, fields: &[(&str, Shape)]) -> Map<String, Value> {
    let mut fitted = Map::new();
    let mut exact = Vec::new();
    for (key, value) in map {
        if value.is_null() {
            continue;
        }
        match fields.iter().find(|(name, _)| name.eq_ignore_ascii_case(&key)) {
            Some((name, shape)) if *name == key => exact.push((key, fit(value, shape))),
            Some((name, shape)) => {
                fitted.insert((*name).to_owned(), fit(value, shape));
            }
            None => {
                fitted.insert(key, value);
            }
        }
    }
    // Of two spellings, the right one counts.
    fitted.extend(exact);
    fitted
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read_config(text: Value) -> Value {
        read(text.to_string().as_bytes(), &CONFIG).unwrap()
    }

    #[test]
    fn numbers_are_written_as_they_were_read() {
        for number in ["2e+45", "0.1", "1.7976931348623157e+308", "18446744073709551615"] {
            let config = format!("{{\"vendor\":{{\"Own\":{number}}}}}");
            let read = read(config.as_bytes(), &CONFIG).unwrap();
            assert_eq!(read.to_string(), config);
        }
    }

    #[test]
    fn keys_in_any_case_and_nulls() {
        let read = read_config(json!({
            "ARCHITECTURE": "amd64", "Os": null, "RootFS": { "Type": null, "DIFF_IDS": null },
            "config": {
                "cmd": ["a"], "Cmd": ["right"], "env": ["A=1", null], "volumes": { "/V": null }, "LABELS": { "Key": null },
                "entrypoint": "/init --now", "exposedports": null, "vendor": { "Own": null },
            },
            "History": [null, { "Created_By": "x", "Empty_Layer": null }],
        }));
        let expected = json!({
            "architecture": "amd64", "rootfs": {},
            "config": {
                "Cmd": ["right"], "Env": ["A=1", ""], "Volumes": { "/V": {} }, "Labels": { "Key": "" },
                "Entrypoint": ["/init --now"], "vendor": { "Own": null },
            },
            "history": [{}, { "created_by": "x" }],
        });
        assert_eq!(read, expected);
    }

    #[test]
    fn what_is_of_another_shape_stays_for_others_to_refuse() {
        for text in ["7", "null", "[]", r#"{"config":7,"rootfs":"x","history":{}}"#] {
            assert_eq!(read(text.as_bytes(), &CONFIG).unwrap(), serde_json::from_str::<Value>(text).unwrap());
        }
    }
}
