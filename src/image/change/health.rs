//! `HEALTHCHECK`, as a Dockerfile writes it and a config keeps it.

use serde_json::{Map, Value, json};

use super::array;

/// Reads `[--interval=DURATION] [--timeout=…] [--start-period=…] [--start-interval=…] [--retries=N] CMD …`, or `NONE`.
pub(super) fn parse(text: &str) -> Result<Value, String> {
    let mut check = Map::new();
    let mut rest = text.trim();
    while let Some(option) = rest.strip_prefix("--") {
        let (option, after) = option.split_once(char::is_whitespace).unwrap_or((option, ""));
        let (name, value) = option.split_once('=').ok_or_else(|| format!("--{option} needs a value"))?;
        let (key, value) = match name {
            "interval" => ("Interval", json!(duration(value)?)),
            "timeout" => ("Timeout", json!(duration(value)?)),
            "start-period" => ("StartPeriod", json!(duration(value)?)),
            "start-interval" => ("StartInterval", json!(duration(value)?)),
            "retries" => {
                let number: u32 = value.parse().map_err(|_| format!("--retries={value} is no number"))?;
                ("Retries", json!(number))
            }
            other => return Err(format!("--{other} is not known")),
        };
        check.insert(key.into(), value);
        rest = after.trim_start();
    }
    let (word, command) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    let command = command.trim();
    let test = match (word.to_ascii_uppercase().as_str(), command) {
        ("NONE", "") => vec!["NONE".to_owned()],
        ("CMD", command) if !command.is_empty() => match array(command)? {
            Some(list) => [vec!["CMD".to_owned()], list].concat(),
            None => vec!["CMD-SHELL".to_owned(), command.to_owned()],
        },
        _ => return Err("write NONE, or CMD and a command".into()),
    };
    check.insert("Test".into(), json!(test));
    Ok(Value::Object(check))
}

/// Returns a duration as the Go language writes it (`1m30s`, `500ms`), in nanoseconds.
fn duration(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no duration: write 30s, 1m30s or 500ms");
    let mut rest = text;
    let mut total = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let number: f64 = rest[..digits].parse().map_err(|_| wrong())?;
        let unit = &rest[digits..];
        let end = unit.find(|c: char| c.is_ascii_digit()).unwrap_or(unit.len());
        total += number
            * match &unit[..end] {
                "ns" => 1.0,
                "us" | "µs" => 1e3,
                "ms" => 1e6,
                "s" => 1e9,
                "m" => 60e9,
                "h" => 3600e9,
                _ => return Err(wrong()),
            };
        rest = &unit[end..];
    }
    match text.is_empty() || total > 1e18 {
        true => Err(wrong()),
        false => Ok(total.round() as u64),
    }
}
