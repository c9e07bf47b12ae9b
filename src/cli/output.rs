//! What verbs print: tables, JSON, or what a template makes of each row. Templates are those of Go, as Docker has them.

use comfy_table::{ContentArrangement, Table, presets};
use jiff::Timestamp;
use serde_json::Value;

use super::Failure;
use super::page::{Page, veiled};
use super::template::Template;
use crate::union::escaped_path::{escaped, json_escaped};

/// How to print.
#[derive(Debug, Clone)]
pub(super) enum Format {
    /// For people.
    Table,
    /// JSON, a line a row.
    Json,
    /// A Go template, applied to each row.
    Template(String),
    /// A Go template whose tabs part the columns of a table.
    TableOf(String),
}

impl Format {
    /// Reads the value of `--format`.
    pub(super) fn new(text: Option<&str>) -> Format {
        match text {
            None | Some("table") => Format::Table,
            Some("json" | "{{json .}}") => Format::Json,
            Some(text) => match text.strip_prefix("table ") {
                Some(template) => Format::TableOf(template.trim().to_owned()),
                None => Format::Template(text.to_owned()),
            },
        }
    }

    /// Renders rows: objects, of which a table shows the fields named in `columns`, under those names' headings.
    pub(super) fn render(&self, columns: &[(&str, &str)], rows: &[Value]) -> Result<Page, Failure> {
        let mut page = Page::default();
        match self {
            Format::Table => page.drawn(&table(columns, rows)),
            Format::Json => rows.iter().try_for_each(|row| page.json(row))?,
            Format::Template(text) => {
                let template = Go::parse(text)?;
                rows.iter().try_for_each(|row| template.apply_to(&mut page, row))?;
            }
            Format::TableOf(text) => {
                let template = Go::parse(text)?;
                let headings = rows.first().map(|row| headings(columns, row)).unwrap_or_default();
                let lines = std::iter::once(&headings).filter(|_| !rows.is_empty()).chain(rows);
                let lines = lines.map(|row| template.apply(&veiled(row)));
                let lines = lines.collect::<Result<Vec<_>, Failure>>()?;
                let cells = lines.iter().map(|line| line.split('\t').map(str::to_owned).collect()).collect();
                page.unveiled(&aligned(cells));
            }
        }
        Ok(page)
    }
}

fn table(columns: &[(&str, &str)], rows: &[Value]) -> String {
    let heading = columns.iter().map(|(heading, _)| (*heading).to_owned()).collect();
    let cell = |row: &Value, field: &str| match &row[field] {
        Value::String(text) => escaped(text),
        Value::Null => String::new(),
        other => json_escaped(&other.to_string()),
    };
    let rows = rows.iter().map(|row| columns.iter().map(|(_, field)| cell(row, field)).collect());
    aligned(std::iter::once(heading).chain(rows).collect())
}

/// Puts lines of cells one below the other.
fn aligned(lines: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    for line in lines {
        table.add_row(line);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

/// Returns what stands over the fields of a row: the headings of the table, and else the fields' names in capitals.
fn headings(columns: &[(&str, &str)], row: &Value) -> Value {
    let heading = |field: &String| match columns.iter().find(|(_, known)| known == field) {
        Some((heading, _)) => (*heading).to_owned(),
        None => {
            let mut words = String::new();
            let mut small = false;
            for c in field.chars() {
                if small && c.is_uppercase() {
                    words.push(' ');
                }
                small = c.is_lowercase();
                words.extend(c.to_uppercase());
            }
            words
        }
    };
    let fields = row.as_object().into_iter().flat_map(|map| map.keys());
    fields.map(|field| (field.clone(), Value::from(heading(field)))).collect()
}

/// A Go template.
pub(super) struct Go(Template);

impl Go {
    /// Reads a template.
    pub(super) fn parse(text: &str) -> Result<Go, Failure> {
        match Template::parse(text) {
            Ok(template) => Ok(Go(template)),
            Err(error) => Err(Failure::usage(format!("--format: the template cannot be read: {error}"))),
        }
    }

    /// Applies it to a value, and adds the line.
    pub(super) fn apply_to(&self, page: &mut Page, value: &Value) -> Result<(), Failure> {
        // What the value says is escaped, what the template says is the caller's.
        page.unveiled(&(self.apply(&veiled(value))? + "\n"));
        Ok(())
    }

    /// Applies it to a value.
    fn apply(&self, value: &Value) -> Result<String, Failure> {
        self.0.apply(value).map_err(|error| {
            let fields: Vec<&str> =
                value.as_object().into_iter().flat_map(|map| map.keys()).map(String::as_str).collect();
            let error = error.chars().take(120).collect::<String>();
            Failure::usage(format!("--format: {error}; the fields are {}", fields.join(", ")))
        })
    }
}

/// Returns a number of things: `1 layer`, `2 layers`.
pub(super) fn count(number: u64, noun: &str) -> String {
    format!("{} {noun}{}", indicatif::HumanCount(number), if number == 1 { "" } else { "s" })
}

/// The year 2, in seconds since 1970.
const NO_TIME: i64 = -62_104_060_800;

/// Returns how long ago a time was, as `3 days ago`; nothing when it isn't told.
pub(super) fn age(time: Option<&str>) -> String {
    let Some(then) = time.and_then(|text| text.parse::<Timestamp>().ok()) else { return String::new() };
    // The year 1 is how the Go language writes "no time".
    if then.as_second() < NO_TIME {
        return "N/A".into();
    }
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
    fn tables_of_templates() {
        let columns = [("IMAGE ID", "ID"), ("TAG", "Tag")];
        let rows = [
            json!({ "ID": "1", "Tag": "a", "CreatedAt": "x" }),
            json!({ "ID": "22", "Tag": "b", "CreatedAt": "y" }),
        ];
        let format = |text| Format::new(Some(text)).render(&columns, &rows).unwrap().text().to_owned();
        assert_eq!(
            format(r"table {{.ID}}\t{{.CreatedAt}}\t{{.Tag}}"),
            "IMAGE ID   CREATED AT   TAG\n1          x            a\n22         y            b\n"
        );
        assert_eq!(format("table"), "IMAGE ID   TAG\n1          a\n22         b\n");
    }

    #[test]
    fn tables_have_no_trailing_blanks() {
        let rows = [json!({ "A": "x", "B": 1 }), json!({ "A": "longer", "B": null })];
        let text = Format::Table.render(&[("FIRST", "A"), ("SECOND", "B")], &rows).unwrap();
        assert_eq!(text.text(), "FIRST    SECOND\nx        1\nlonger\n");
    }
}
