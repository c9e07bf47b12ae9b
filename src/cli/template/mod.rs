//! Go templates over JSON, as `--format` has them everywhere: what is parsed here is what Go's `text/template` parses, save
//! for templates within templates. Values and functions are in `value`.

mod parse;
mod value;

use serde_json::Value;

use parse::{Argument, Node, Pipeline};
use value::Val;

/// Why a template can't be read or applied.
pub type Wrong = String;

/// A template.
#[derive(Debug)]
pub struct Template(Vec<Node>);

impl Template {
    /// Reads a template. Outside of actions, `\t` and `\n` are understood, since a shell's quotes keep them as they are.
    ///
    /// # Errors
    /// When it is none.
    pub fn parse(text: &str) -> Result<Template, Wrong> {
        parse::parse(text).map(Template)
    }

    /// Applies it to a value.
    ///
    /// # Errors
    /// When what it names isn't there, or isn't of the type that it takes it for.
    pub fn apply(&self, value: &Value) -> Result<String, Wrong> {
        let dot = Val::of(value.clone());
        let mut run = Run { out: String::new(), variables: vec![("$".to_owned(), dot.clone())] };
        run.nodes(&self.0, &dot)?;
        Ok(run.out)
    }
}

/// A template that is being applied.
struct Run {
    out: String,
    /// The innermost last.
    variables: Vec<(String, Val)>,
}

impl Run {
    fn nodes(&mut self, nodes: &[Node], dot: &Val) -> Result<(), Wrong> {
        for node in nodes {
            match node {
                Node::Text(text) => self.out.push_str(text),
                Node::Action(pipeline) => {
                    let value = self.pipeline(pipeline, dot)?;
                    if pipeline.variables.is_empty() {
                        self.out.push_str(&value.shown());
                    }
                }
                Node::If { condition, then, otherwise } => {
                    let known = self.variables.len();
                    let value = self.pipeline(condition, dot)?;
                    self.nodes(if value.is_true() { then } else { otherwise }, dot)?;
                    self.variables.truncate(known);
                }
                Node::With { value, then, otherwise } => {
                    let known = self.variables.len();
                    let value = self.pipeline(value, dot)?;
                    match value.is_true() {
                        true => self.nodes(then, &value)?,
                        false => self.nodes(otherwise, dot)?,
                    }
                    self.variables.truncate(known);
                }
                Node::Range { over, each, otherwise } => self.range(over, each, otherwise, dot)?,
            }
        }
        Ok(())
    }

    fn range(&mut self, over: &Pipeline, each: &[Node], otherwise: &[Node], dot: &Val) -> Result<(), Wrong> {
        let items = self.commands(over, dot)?.items()?;
        if items.is_empty() {
            return self.nodes(otherwise, dot);
        }
        for (key, item) in items {
            let known = self.variables.len();
            match &over.variables[..] {
                [] => {}
                [one] => self.variables.push((one.clone(), item.clone())),
                [first, second, ..] => {
                    self.variables.push((first.clone(), key));
                    self.variables.push((second.clone(), item.clone()));
                }
            }
            self.nodes(each, &item)?;
            self.variables.truncate(known);
        }
        Ok(())
    }

    fn pipeline(&mut self, pipeline: &Pipeline, dot: &Val) -> Result<Val, Wrong> {
        let value = self.commands(pipeline, dot)?;
        for name in &pipeline.variables {
            if pipeline.declares {
                self.variables.push((name.clone(), value.clone()));
            } else {
                let old = self.variables.iter_mut().rev().find(|(known, _)| known == name);
                old.ok_or_else(|| format!("undefined variable {name}"))?.1 = value.clone();
            }
        }
        Ok(value)
    }

    fn commands(&mut self, pipeline: &Pipeline, dot: &Val) -> Result<Val, Wrong> {
        let mut last: Option<Val> = None;
        for command in &pipeline.commands {
            let [first, rest @ ..] = &command[..] else { return Err("an empty command".to_owned()) };
            let mut arguments = Vec::new();
            for argument in rest {
                arguments.push(self.argument(argument, dot)?);
            }
            arguments.extend(last.take());
            last = Some(match first {
                Argument::Function(name) => value::call(name, &arguments)?,
                _ if !arguments.is_empty() => {
                    return Err("what is no function was given arguments".to_owned());
                }
                value => self.argument(value, dot)?,
            });
        }
        last.ok_or_else(|| "an empty action".to_owned())
    }

    fn argument(&mut self, argument: &Argument, dot: &Val) -> Result<Val, Wrong> {
        let (start, fields) = match argument {
            Argument::Constant(value) => return Ok(Val::of(value.clone())),
            Argument::Function(name) => return value::call(name, &[]),
            Argument::Field(fields) => (dot.clone(), fields),
            Argument::Variable(name, fields) => {
                let found = self.variables.iter().rev().find(|(known, _)| known == name);
                (found.ok_or_else(|| format!("undefined variable {name}"))?.1.clone(), fields)
            }
            Argument::Pipeline(inner, fields) => (self.pipeline(inner, dot)?, fields),
        };
        fields.iter().try_fold(start, |value, field| value.field(field))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn applied(template: &str) -> Result<String, Wrong> {
        let value = json!({
            "Name": "ab cd", "List": ["x", "y"], "Empty": [], "Inner": { "N": 3, "Null": null, "A": [1, null] },
            "Flag": true, "F": 1.5, "RepoTags": null, "Labels": null, "Words": { "b": "2", "a": "1" },
        });
        Template::parse(template)?.apply(&value)
    }

    #[test]
    fn values_are_printed_as_go_prints_them() {
        for (template, result) in [
            ("{{.List}} {{.Empty}} {{.Inner}}", "[x y] [] map[A:[1 <nil>] N:3 Null:<nil>]"),
            ("{{.Inner.Null}} {{.RepoTags}} {{.Labels}}", "<no value> [] map[]"),
            ("{{json .RepoTags}} {{json .List}} {{json .Words}}", r#"null ["x","y"] {"a":"1","b":"2"}"#),
            ("{{.Flag}} {{.F}} {{.Inner.N}} {{.Words}}", "true 1.5 3 map[a:1 b:2]"),
            (r#"{{"\n"}}|{{"\t\"\u00e9"}}|{{`\n`}}|{{'a'}}"#, "\n|\t\"é|\\n|97"),
            (r"a\tb\n{{.Flag}}", "a\tb\ntrue"),
            ("a {{- .Flag -}} b {{/* no */}}", "atrueb "),
            (
                r#"{{printf "%s|%-4s|%4d|%q|%v|%03d%%" .Name "x" 7 "q" .List 5}}"#,
                "ab cd|x   |   7|\"q\"|[x y]|005%",
            ),
            ("{{println .Inner.N .Name}}", "3 ab cd\n"),
            (r#"{{print "a" 1 2 "b"}}"#, "a1 2b"),
        ] {
            assert_eq!(applied(template).as_deref(), Ok(result), "{template}");
        }
    }

    #[test]
    fn actions() {
        for (template, result) in [
            ("{{range .List}}<{{.}}>{{end}}", "<x><y>"),
            ("{{range .List}}<{{.}}>{{else}}none{{end}}", "<x><y>"),
            (
                "{{range .Empty}}x{{else}}none{{end}}{{range .RepoTags}}x{{end}}{{range .Inner.Null}}x{{end}}",
                "none",
            ),
            ("{{range $i, $w := .List}}{{$i}}{{$w}}{{$.Flag}} {{end}}", "0xtrue 1ytrue "),
            ("{{range $k, $v := .Words}}{{$k}}={{$v}};{{end}}", "a=1;b=2;"),
            ("{{if .Empty}}a{{else if .Flag}}b{{else}}c{{end}}", "b"),
            ("{{with .Inner}}{{.N}}{{end}}{{with .RepoTags}}x{{else}}{{.Flag}}{{end}}", "3true"),
            ("{{$x := 1}}{{if .Flag}}{{$x = 2}}{{end}}{{$x}}", "2"),
            ("{{(index .List 1) | upper}}{{(.Inner).N}}", "Y3"),
        ] {
            assert_eq!(applied(template).as_deref(), Ok(result), "{template}");
        }
    }

    #[test]
    fn functions() {
        for (template, result) in [
            (r#"{{join .List ","}} {{upper .Name}} {{index .List 1}} {{len .List}}"#, "x,y AB CD y 2"),
            (r#"{{split "a,b,c" ","}} {{index (split .Name " ") 1}} {{title .Name}}"#, "[a b c] cd Ab Cd"),
            (r#"{{slice .Name 1 4}} {{slice .List 1}} {{.Name | len}}"#, "b c [y] 5"),
            (r#"{{index .Words "a"}}{{index .Words "none"}} {{index .Inner "A" 0}}"#, "1 1"),
            (
                r#"{{eq .Name "x" "ab cd"}} {{ne 1 2}} {{lt 1 2}} {{ge .F 2}} {{and 1 0}} {{or 0 "z"}} {{not .Flag}}"#,
                "true true true false 0 z false",
            ),
            (r#"{{truncate .Name 2}}|{{pad "a" 1 2}}|{{lower "X"}}"#, "ab| a  |x"),
        ] {
            assert_eq!(applied(template).as_deref(), Ok(result), "{template}");
        }
    }

    #[test]
    fn what_is_wrong_is_told() {
        for (template, part) in [
            ("{{.Missing}}", "Missing"),
            ("{{", "unclosed"),
            ("{{nothing .Name}}", "nothing"),
            ("{{.Name.Deeper}}", "Deeper"),
            ("{{json}}", "json"),
            ("{{if .Flag}}x", "end"),
            ("{{end}}", "end"),
            ("{{.Name .Flag}}", "arguments"),
            ("{{range .Flag}}{{end}}", "range"),
            ("{{index .List 7}}", "index"),
            ("{{\"a}}", "unclosed"),
            ("{{.Name | }}", "empty"),
            ("{{$y}}", "$y"),
            ("{{slice .Name 3 2}}", "slice"),
            ("{{eq .Name 1}}", "compare"),
            ("{{(.Name}}", ")"),
        ] {
            let error = applied(template).unwrap_err();
            assert!(error.contains(part), "{template}: {error}");
        }
        let deep = format!("{{{{{}1{}}}}}", "(".repeat(10_000), ")".repeat(10_000));
        applied(&deep).unwrap_err();
        applied(&"{{if 1}}".repeat(10_000)).unwrap_err();
    }
}
