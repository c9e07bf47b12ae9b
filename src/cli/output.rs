//! What verbs print: tables, JSON, or what a template makes of each row. Templates are those of Go, as Docker has them.

use std::collections::HashMap;

use comfy_table::{ContentArrangement, Table, presets};
use gtmpl::{Context, FuncError, Template};
use jiff::Timestamp;
use serde_json::Value;

use super::Failure;

/// How to print.
#[derive(Debug, Clone)]
pub(super) enum Format {
    /// For people.
    Table,
    /// JSON, a line a row.
    Json,
    /// A Go template, applied to each row.
    Template(String),
}

impl Format {
    /// Reads the value of `--format`.
    pub(super) fn new(text: Option<&str>) -> Format {
        match text {
            None | Some("table") => Format::Table,
            Some("json" | "{{json .}}") => Format::Json,
            Some(template) => Format::Template(template.to_owned()),
        }
    }

    /// Renders rows: objects, of which a table shows the fields named in `columns`, under those names' headings.
    pub(super) fn render(&self, columns: &[(&str, &str)], rows: &[Value]) -> Result<String, Failure> {
        match self {
            Format::Table => Ok(table(columns, rows)),
            Format::Json => Ok(rows.iter().map(|row| format!("{row}\n")).collect()),
            Format::Template(text) => {
                let template = Go::parse(text)?;
                rows.iter().map(|row| template.apply(row).map(|line| line + "\n")).collect()
            }
        }
    }
}

fn table(columns: &[(&str, &str)], rows: &[Value]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(columns.iter().map(|(heading, _)| *heading));
    for row in rows {
        table.add_row(columns.iter().map(|(_, field)| match &row[*field] {
            Value::String(text) => text.clone(),
            Value::Null => String::new(),
            other => other.to_string(),
        }));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

/// A Go template.
pub(super) struct Go(Template);

impl Go {
    /// Reads a template. `\t` and `\n` are understood, since a shell's quotes keep them as they are.
    pub(super) fn parse(text: &str) -> Result<Go, Failure> {
        let text = text.replace("\\t", "\t").replace("\\n", "\n");
        let mut template = Template::default();
        template.add_func("json", |args| {
            let value = args.first().ok_or_else(|| FuncError::AtLeastXArgs("json".into(), 1))?;
            Ok(gtmpl::Value::from(to_json(value).to_string()))
        });
        template.add_func("join", |args| match args {
            [gtmpl::Value::Array(list), gtmpl::Value::String(between)] => {
                let parts: Vec<String> = list.iter().map(ToString::to_string).collect();
                Ok(gtmpl::Value::from(parts.join(between)))
            }
            _ => Err(FuncError::ExactlyXArgs("join LIST SEPARATOR".into(), 2)),
        });
        template.add_func("upper", |args| text_function(args, str::to_uppercase));
        template.add_func("lower", |args| text_function(args, str::to_lowercase));
        match template.parse(&text) {
            Ok(()) => Ok(Go(template)),
            Err(error) => Err(Failure::usage(format!("--format: the template cannot be read: {error}"))),
        }
    }

    /// Applies it to a value.
    pub(super) fn apply(&self, value: &Value) -> Result<String, Failure> {
        let rendered = self.0.render(&Context::from(from_json(value)));
        rendered.map_err(|error| {
            let fields: Vec<&str> =
                value.as_object().into_iter().flat_map(|map| map.keys()).map(String::as_str).collect();
            let error = error.to_string();
            // The crate prints the whole value as its error goes on.
            let error = error.split(" in ").next().unwrap_or_default();
            let error = error.split(" for {").next().unwrap_or_default().chars().take(80).collect::<String>();
            Failure::usage(format!("--format: {error}; the fields are {}", fields.join(", ")))
        })
    }
}

fn text_function(
    args: &[gtmpl::Value],
    function: impl Fn(&str) -> String,
) -> Result<gtmpl::Value, FuncError> {
    match args {
        [gtmpl::Value::String(text)] => Ok(gtmpl::Value::from(function(text))),
        _ => Err(FuncError::ExactlyXArgs("a text".into(), 1)),
    }
}

fn from_json(value: &Value) -> gtmpl::Value {
    match value {
        Value::Null => gtmpl::Value::Nil,
        Value::Bool(flag) => gtmpl::Value::from(*flag),
        Value::Number(number) => match (number.as_u64(), number.as_i64(), number.as_f64()) {
            (Some(number), ..) => gtmpl::Value::from(number),
            (_, Some(number), _) => gtmpl::Value::from(number),
            (.., number) => gtmpl::Value::from(number.unwrap_or_default()),
        },
        Value::String(text) => gtmpl::Value::from(text.clone()),
        Value::Array(list) => gtmpl::Value::Array(list.iter().map(from_json).collect()),
        Value::Object(map) => {
            let map: HashMap<String, gtmpl::Value> =
                map.iter().map(|(key, value)| (key.clone(), from_json(value))).collect();
            gtmpl::Value::Object(map)
        }
    }
}

fn to_json(value: &gtmpl::Value) -> Value {
    match value {
        gtmpl::Value::Bool(flag) => Value::from(*flag),
        gtmpl::Value::String(text) => Value::from(text.as_str()),
        gtmpl::Value::Number(number) => match (number.as_u64(), number.as_i64(), number.as_f64()) {
            (Some(number), ..) => Value::from(number),
            (_, Some(number), _) => Value::from(number),
            (.., number) => Value::from(number),
        },
        gtmpl::Value::Array(list) => Value::Array(list.iter().map(to_json).collect()),
        gtmpl::Value::Object(map) | gtmpl::Value::Map(map) => {
            Value::Object(map.iter().map(|(key, value)| (key.clone(), to_json(value))).collect())
        }
        gtmpl::Value::Nil | gtmpl::Value::NoValue | gtmpl::Value::Function(_) => Value::Null,
    }
}

/// A size as Docker shows it: 4.43MB.
pub(super) fn size(bytes: u64) -> String {
    indicatif::DecimalBytes(bytes).to_string().replace(' ', "")
}

/// How long ago a time was, as `3 days ago`; nothing when it isn't told.
pub(super) fn age(time: Option<&str>) -> String {
    let Some(then) = time.and_then(|text| text.parse::<Timestamp>().ok()) else { return String::new() };
    let seconds = Timestamp::now().as_second().saturating_sub(then.as_second());
    // Reproducible images say that they are from 1970 or 1980; so they are told.
    format!(
        "{} ago",
        indicatif::HumanDuration(std::time::Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn applied(template: &str) -> Result<String, Failure> {
        let value =
            json!({ "Name": "a", "List": ["x", "y"], "Inner": { "N": 3, "Null": null }, "Flag": true });
        Go::parse(template)?.apply(&value)
    }

    #[test]
    fn templates() {
        for (template, result) in [
            ("{{.Name}}:{{.Inner.N}}", "a:3"),
            (r"{{.Name}}\t{{.Flag}}", "a\ttrue"),
            ("{{json .List}} {{json .Inner}}", r#"["x","y"] {"N":3,"Null":null}"#),
            ("{{range .List}}<{{.}}>{{end}}", "<x><y>"),
            ("{{join .List \",\"}} {{upper .Name}} {{index .List 1}} {{len .List}}", "x,y A y 2"),
        ] {
            assert_eq!(applied(template).unwrap(), result, "{template}");
        }
        for template in ["{{.Missing}}", "{{", "{{nothing .Name}}", "{{.Name.Deeper}}", "{{json}}"] {
            assert_eq!(applied(template).unwrap_err().code, 2, "{template}");
        }
    }

    #[test]
    fn tables_have_no_trailing_blanks() {
        let rows = [json!({ "A": "x", "B": 1 }), json!({ "A": "longer", "B": null })];
        let text = Format::Table.render(&[("FIRST", "A"), ("SECOND", "B")], &rows).unwrap();
        assert_eq!(text, "FIRST    SECOND\nx        1\nlonger\n");
    }
}
