//! Values of a template, and its functions: those of Go that make sense here, and Docker's.

use std::cmp::Ordering;

use serde_json::{Map, Value, json};

use super::Wrong;

/// A value. `null` stands in JSON for an empty list and an empty map of Go as well, which are printed as such.
#[derive(Debug, Clone)]
pub(super) struct Val {
    json: Value,
    empty: Empty,
}

/// What `null` is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Empty {
    Nothing,
    List,
    Map,
}

/// The fields of Docker's documents that are lists, and those that are maps.
const LISTS: [&str; 9] =
    ["RepoTags", "RepoDigests", "Env", "Cmd", "Entrypoint", "OnBuild", "Shell", "Layers", "Args"];
const MAPS: [&str; 4] = ["Labels", "Volumes", "ExposedPorts", "Annotations"];

impl Val {
    pub(super) fn of(json: Value) -> Val {
        Val { json, empty: Empty::Nothing }
    }

    pub(super) fn field(self, name: &str) -> Result<Val, Wrong> {
        let Value::Object(mut map) = self.json else {
            return Err(format!("there is no field {name} in what is no map"));
        };
        let json = map.remove(name).ok_or_else(|| format!("there is no field {name}"))?;
        let empty = if LISTS.contains(&name) {
            Empty::List
        } else if MAPS.contains(&name) {
            Empty::Map
        } else {
            Empty::Nothing
        };
        Ok(Val { json, empty })
    }

    /// Returns it as an action prints it.
    pub(super) fn shown(&self) -> String {
        match (&self.json, self.empty) {
            (Value::Null, Empty::Nothing) => "<no value>".to_owned(),
            (Value::Null, Empty::List) => "[]".to_owned(),
            (Value::Null, Empty::Map) => "map[]".to_owned(),
            (json, _) => printed(json),
        }
    }

    pub(super) fn is_true(&self) -> bool {
        match &self.json {
            Value::Null => false,
            Value::Bool(flag) => *flag,
            Value::Number(number) => number.as_f64() != Some(0.0),
            Value::String(text) => !text.is_empty(),
            Value::Array(list) => !list.is_empty(),
            Value::Object(map) => !map.is_empty(),
        }
    }

    /// Returns keys and values, in order; of nothing at all there are none.
    pub(super) fn items(self) -> Result<Vec<(Val, Val)>, Wrong> {
        let pair = |key: Value, value| (Val::of(key), Val::of(value));
        match self.json {
            Value::Null => Ok(Vec::new()),
            Value::Array(list) => {
                Ok(list.into_iter().enumerate().map(|(at, item)| pair(json!(at), item)).collect())
            }
            Value::Object(map) => {
                Ok(sorted(map).into_iter().map(|(key, item)| pair(json!(key), item)).collect())
            }
            other => Err(format!("range cannot go over {}", printed(&other))),
        }
    }
}

/// Sorts, whatever features `serde_json` is built with.
fn sorted(map: Map<String, Value>) -> Vec<(String, Value)> {
    let mut all: Vec<(String, Value)> = map.into_iter().collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

/// Returns it as Go's `%v` prints it.
fn printed(json: &Value) -> String {
    match json {
        Value::Null => "<nil>".to_owned(),
        Value::String(text) => text.clone(),
        Value::Bool(_) | Value::Number(_) => json.to_string(),
        Value::Array(list) => format!("[{}]", list.iter().map(printed).collect::<Vec<_>>().join(" ")),
        Value::Object(map) => {
            let all = sorted(map.clone());
            let all: Vec<String> =
                all.iter().map(|(key, value)| format!("{key}:{}", printed(value))).collect();
            format!("map[{}]", all.join(" "))
        }
    }
}

/// Calls a function.
pub(super) fn call(name: &str, arguments: &[Val]) -> Result<Val, Wrong> {
    let json: Vec<&Value> = arguments.iter().map(|value| &value.json).collect();
    for family in [of_texts, of_lists, of_conditions] {
        if let Some(result) = family(name, arguments, &json) {
            return result;
        }
    }
    Err(match NAMES.contains(&name) {
        true => strange(name),
        false => format!("there is no function {name}"),
    })
}

const NAMES: [&str; 21] = [
    "json", "printf", "join", "split", "upper", "lower", "title", "truncate", "pad", "len", "index", "slice",
    "not", "and", "or", "eq", "ne", "lt", "le", "gt", "ge",
];

fn strange(name: &str) -> Wrong {
    format!("{name} does not take such arguments")
}

/// Calls the functions that make a text; `None` where it is another, or the arguments are.
fn of_texts(name: &str, _: &[Val], json: &[&Value]) -> Option<Result<Val, Wrong>> {
    let text = match (name, json) {
        ("json", [value]) => value.to_string(),
        ("print", values) => print(values),
        ("println", values) => values.iter().map(|value| printed(value)).collect::<Vec<_>>().join(" ") + "\n",
        ("printf", [Value::String(format), values @ ..]) => printf(format, values),
        ("join", [list, Value::String(between)]) => {
            let parts: Vec<String> = list.as_array().into_iter().flatten().map(printed).collect();
            parts.join(between)
        }
        ("upper", [Value::String(value)]) => value.to_uppercase(),
        ("lower", [Value::String(value)]) => value.to_lowercase(),
        ("title", [Value::String(value)]) => title(value),
        ("truncate", [Value::String(value), length]) => value.chars().take(count(length)?).collect(),
        ("pad", [Value::String(value), before, after]) => {
            let blanks = |number| Some(" ".repeat(count(number)?.min(1000)));
            let (before, after) = (blanks(before)?, blanks(after)?);
            format!("{before}{value}{after}")
        }
        _ => return None,
    };
    Some(Ok(Val::of(Value::String(text))))
}

/// Calls the functions about lists, maps and parts of texts.
fn of_lists(name: &str, arguments: &[Val], json: &[&Value]) -> Option<Result<Val, Wrong>> {
    Some(Ok(match (name, json) {
        ("split", [Value::String(all), Value::String(between)]) => {
            let parts: Vec<&str> = match between.is_empty() {
                true => all.split("").filter(|part| !part.is_empty()).collect(),
                false => all.split(between).collect(),
            };
            Val::of(json!(parts))
        }
        ("len", [value]) => match (value, arguments[0].empty) {
            (Value::String(text), _) => Val::of(json!(text.len())),
            (Value::Array(list), _) => Val::of(json!(list.len())),
            (Value::Object(map), _) => Val::of(json!(map.len())),
            (Value::Null, Empty::List | Empty::Map) => Val::of(json!(0)),
            _ => return None,
        },
        ("index", [value, keys @ ..]) => {
            let found = keys.iter().try_fold((*value).clone(), |value, key| index(&value, key));
            return Some(found.map(Val::of));
        }
        ("slice", [value, bounds @ ..]) if bounds.len() <= 2 => Val::of(slice(value, bounds)?),
        _ => return None,
    }))
}

/// Calls the functions that compare and decide.
fn of_conditions(name: &str, arguments: &[Val], json: &[&Value]) -> Option<Result<Val, Wrong>> {
    let truth = |truth: bool| Val::of(json!(truth));
    Some(match (name, json) {
        ("not", [_]) => Ok(truth(!arguments[0].is_true())),
        ("and", [_, ..]) => Ok(deciding(arguments, false)),
        ("or", [_, ..]) => Ok(deciding(arguments, true)),
        ("eq", [first, rest @ ..]) if !rest.is_empty() => {
            let same = rest.iter().map(|other| compare(first, other).map(|order| order == Ordering::Equal));
            same.collect::<Result<Vec<bool>, _>>().map(|same| truth(same.contains(&true)))
        }
        ("ne" | "lt" | "le" | "gt" | "ge", [one, other]) => compare(one, other).map(|order| {
            truth(match name {
                "ne" => order.is_ne(),
                "lt" => order.is_lt(),
                "le" => order.is_le(),
                "gt" => order.is_gt(),
                _ => order.is_ge(),
            })
        }),
        _ => return None,
    })
}

/// Returns the first argument that is as wanted, or the last one.
fn deciding(arguments: &[Val], wanted: bool) -> Val {
    let found = arguments.iter().find(|value| value.is_true() == wanted).or(arguments.last());
    found.cloned().unwrap_or_else(|| Val::of(Value::Null))
}

fn count(value: &Value) -> Option<usize> {
    value.as_u64().and_then(|number| usize::try_from(number).ok())
}

fn compare(one: &Value, other: &Value) -> Result<Ordering, Wrong> {
    let strange = || format!("cannot compare {} and {}", printed(one), printed(other));
    match (one, other) {
        (Value::String(one), Value::String(other)) => Ok(one.cmp(other)),
        (Value::Number(a), Value::Number(b)) => match (a.as_i64(), b.as_i64()) {
            (Some(a), Some(b)) => Ok(a.cmp(&b)),
            _ => a.as_f64().partial_cmp(&b.as_f64()).ok_or_else(strange),
        },
        (Value::Bool(one), Value::Bool(other)) => Ok(one.cmp(other)),
        (Value::Null, Value::Null) => Ok(Ordering::Equal),
        _ => Err(strange()),
    }
}

/// Looks a key up: what a map of texts doesn't have is the empty text.
fn index(value: &Value, key: &Value) -> Result<Value, Wrong> {
    let wrong = || format!("index {} is out of range", printed(key));
    match (value, key) {
        (Value::Array(list), key) => count(key).and_then(|at| list.get(at)).cloned().ok_or_else(wrong),
        (Value::Object(map), Value::String(key)) => Ok(match map.get(key) {
            Some(value) => value.clone(),
            None if map.values().all(Value::is_string) => json!(""),
            None => Value::Null,
        }),
        (Value::Null, Value::String(_)) => Ok(json!("")),
        _ => Err(wrong()),
    }
}

fn slice(value: &Value, bounds: &[&Value]) -> Option<Value> {
    let from = bounds.first().map_or(Some(0), |bound| count(bound))?;
    match value {
        Value::String(text) => {
            let to = bounds.get(1).map_or(Some(text.len()), |bound| count(bound))?;
            Some(json!(text.get(from..to)?))
        }
        Value::Array(list) => {
            let to = bounds.get(1).map_or(Some(list.len()), |bound| count(bound))?;
            Some(json!(list.get(from..to)?))
        }
        _ => None,
    }
}

/// Gives each word a capital.
fn title(text: &str) -> String {
    let mut begins = true;
    text.chars()
        .flat_map(|c| {
            let shown: Vec<char> = if begins { c.to_uppercase().collect() } else { vec![c] };
            begins = !c.is_alphanumeric() && c != '_' && c != '\'';
            shown
        })
        .collect()
}

/// Prints values: blanks stand between what is no text.
fn print(values: &[&Value]) -> String {
    let mut out = String::new();
    for (at, value) in values.iter().enumerate() {
        if at > 0 && !value.is_string() && !values[at - 1].is_string() {
            out.push(' ');
        }
        out.push_str(&printed(value));
    }
    out
}

/// Formats by the verbs that make sense of JSON: `%s %v %d %q %t %f %x %%`, with `-`, `0`, a width and a precision.
fn printf(format: &str, values: &[&Value]) -> String {
    let (mut out, mut values) = (String::new(), values.iter());
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let (mut left, mut zeros) = (false, false);
        while let Some(flag) = chars.next_if(|c| matches!(c, '-' | '0' | '+' | '#' | ' ')) {
            left |= flag == '-';
            zeros |= flag == '0';
        }
        let number = |chars: &mut std::iter::Peekable<std::str::Chars<'_>>| {
            let digits: String = std::iter::from_fn(|| chars.next_if(char::is_ascii_digit)).collect();
            digits.parse::<usize>().ok().map(|number| number.min(1000))
        };
        let width = number(&mut chars).unwrap_or(0);
        let precision = chars.next_if_eq(&'.').map(|_| number(&mut chars).unwrap_or(0));
        let verb = chars.next().unwrap_or('%');
        if verb == '%' {
            out.push('%');
            continue;
        }
        let Some(value) = values.next() else {
            out.push_str(&format!("%!{verb}(MISSING)"));
            continue;
        };
        let text = match (verb, value) {
            ('q', value) => json!(printed(value)).to_string(),
            ('f', Value::Number(number)) => {
                format!("{:.*}", precision.unwrap_or(6), number.as_f64().unwrap_or_default())
            }
            ('x', Value::String(text)) => hex::encode(text),
            ('x', Value::Number(number)) if number.is_u64() => {
                format!("{:x}", number.as_u64().unwrap_or_default())
            }
            ('s' | 'v', value) => {
                let text = printed(value);
                precision.map_or(text.clone(), |most| text.chars().take(most).collect())
            }
            ('d', Value::Number(_)) | ('t', Value::Bool(_)) => printed(value),
            (verb, value) => format!("%!{verb}({})", printed(value)),
        };
        let missing = width.saturating_sub(text.chars().count());
        match (left, zeros && value.is_number()) {
            (true, _) => out.push_str(&format!("{text}{}", " ".repeat(missing))),
            (false, true) => out.push_str(&format!("{}{text}", "0".repeat(missing))),
            (false, false) => out.push_str(&format!("{}{text}", " ".repeat(missing))),
        }
    }
    out
}
