//! The text of a template: actions between `{{` and `}}`, and what they say.

use std::iter::Peekable;
use std::vec::IntoIter;

use serde_json::{Value, json};

use super::Wrong;

/// A part of a template.
#[derive(Debug)]
pub(super) enum Node {
    Text(String),
    /// Prints a value, or sets variables.
    Action(Pipeline),
    If {
        condition: Pipeline,
        then: Vec<Node>,
        otherwise: Vec<Node>,
    },
    With {
        value: Pipeline,
        then: Vec<Node>,
        otherwise: Vec<Node>,
    },
    Range {
        over: Pipeline,
        each: Vec<Node>,
        otherwise: Vec<Node>,
    },
}

/// Commands, of which each gets the value of the one before as its last argument.
#[derive(Debug, Default)]
pub(super) struct Pipeline {
    /// The variables that get the value.
    pub variables: Vec<String>,
    /// Whether they are new.
    pub declares: bool,
    pub commands: Vec<Vec<Argument>>,
}

/// A word of a command.
#[derive(Debug)]
pub(super) enum Argument {
    Constant(Value),
    Function(String),
    /// `.A.B`; of `.` alone, no field.
    Field(Vec<String>),
    Variable(String, Vec<String>),
    Pipeline(Box<Pipeline>, Vec<String>),
}

/// More levels of brackets, or of blocks, than anybody writes.
const DEEPEST: usize = 100;

/// A piece of the text.
enum Piece {
    Text(String),
    Action(Vec<Token>),
}

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Constant(Value),
    Word(String),
    /// `.A`; `.` alone is the empty one. Whether it follows the token before without a blank.
    Field(String, bool),
    Variable(String),
    Sign(&'static str),
}

/// Reads a template.
pub(super) fn parse(text: &str) -> Result<Vec<Node>, Wrong> {
    let mut parser = Parser { pieces: pieces(text)?.into_iter().peekable(), depth: 0 };
    match parser.nodes()? {
        (nodes, None) => Ok(nodes),
        (_, Some(end)) => Err(format!("unexpected {{{{{end}}}}}")),
    }
}

fn pieces(text: &str) -> Result<Vec<Piece>, Wrong> {
    let mut pieces = Vec::new();
    let (mut rest, mut trim) = (text, false);
    loop {
        let (plain, action) = match rest.split_once("{{") {
            Some((plain, action)) => (plain, Some(action)),
            None => (rest, None),
        };
        let plain = if trim { plain.trim_start() } else { plain };
        let trims_before = action.is_some_and(|action| action.starts_with("- ") || action.starts_with("-\n"));
        let plain = if trims_before { plain.trim_end() } else { plain };
        if !plain.is_empty() {
            pieces.push(Piece::Text(plain.replace("\\t", "\t").replace("\\n", "\n")));
        }
        let Some(action) = action else { return Ok(pieces) };
        let action = if trims_before { &action[1..] } else { action };
        if let Some(comment) = action.trim_start().strip_prefix("/*") {
            let (_, after) = comment.split_once("*/").ok_or("unclosed comment")?;
            (rest, trim) = after_action(after).ok_or("a comment must end its action")?;
            continue;
        }
        let (tokens, after) = tokens(action)?;
        (rest, trim) = after_action(after).ok_or("unclosed action")?;
        pieces.push(Piece::Action(tokens));
    }
}

/// Returns what follows the end of an action, and whether it is to be trimmed.
fn after_action(text: &str) -> Option<(&str, bool)> {
    let text = text.trim_start();
    match text.strip_prefix("-}}") {
        Some(rest) => Some((rest, true)),
        None => text.strip_prefix("}}").map(|rest| (rest, false)),
    }
}

const SIGNS: [&str; 6] = [":=", "=", "|", "(", ")", ","];

/// Returns the tokens of an action, and the text from its end on.
fn tokens(text: &str) -> Result<(Vec<Token>, &str), Wrong> {
    let (mut tokens, mut rest) = (Vec::new(), text);
    loop {
        let trimmed = rest.trim_start();
        let adjoins = trimmed.len() == rest.len() && !tokens.is_empty();
        rest = trimmed;
        if rest.is_empty() {
            return Err("unclosed action".to_owned());
        }
        if rest.starts_with("}}") || rest.starts_with("-}}") {
            return Ok((tokens, rest));
        }
        if let Some(sign) = SIGNS.iter().find(|sign| rest.starts_with(**sign)) {
            tokens.push(Token::Sign(sign));
            rest = &rest[sign.len()..];
            continue;
        }
        let (token, used) = token(rest, adjoins)?;
        tokens.push(token);
        rest = &rest[used..];
    }
}

fn token(text: &str, adjoins: bool) -> Result<(Token, usize), Wrong> {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    let name = |from: usize| text[from..].find(|c| !is_name(c)).map_or(text.len(), |end| from + end);
    match text.as_bytes() {
        [b'"', ..] | [b'\'', ..] => quoted(text),
        [b'`', rest @ ..] => {
            let end = rest.iter().position(|&byte| byte == b'`').ok_or("unclosed raw text")?;
            Ok((Token::Constant(json!(text[1..=end])), end + 2))
        }
        [b'.', ..] if !text[1..].starts_with(|c: char| c.is_ascii_digit()) => {
            let end = name(1);
            Ok((Token::Field(text[1..end].to_owned(), adjoins), end))
        }
        [b'$', ..] => {
            let end = name(1);
            Ok((Token::Variable(text[..end].to_owned()), end))
        }
        [b'0'..=b'9' | b'-' | b'+' | b'.', ..] => {
            let end = text[1..]
                .find(|c: char| !(c.is_alphanumeric() || c == '.'))
                .map_or(text.len(), |end| end + 1);
            Ok((Token::Constant(number(&text[..end])?), end))
        }
        _ => match name(0) {
            0 => Err(format!("unexpected {:?}", text.chars().next().unwrap_or_default())),
            end => Ok((Token::Word(text[..end].to_owned()), end)),
        },
    }
}

fn number(text: &str) -> Result<Value, Wrong> {
    let plain = text.trim_start_matches('+');
    if let Ok(number) = plain.parse::<i64>() {
        return Ok(json!(number));
    }
    plain.parse::<f64>().map(|number| json!(number)).map_err(|_| format!("{text:?} is no number"))
}

/// Reads a text, or the number of a character, in quotes.
fn quoted(text: &str) -> Result<(Token, usize), Wrong> {
    let mut chars = text.char_indices();
    let quote = chars.next().map_or('"', |(_, quote)| quote);
    let mut value = String::new();
    while let Some((at, c)) = chars.next() {
        if c == quote {
            let constant = match (quote, value.chars().next()) {
                ('\'', Some(c)) => json!(u32::from(c)),
                _ => json!(value),
            };
            return Ok((Token::Constant(constant), at + 1));
        }
        if c != '\\' {
            value.push(c);
            continue;
        }
        let Some((_, escaped)) = chars.next() else { break };
        let mut code = |digits: usize, radix: u32| {
            let text: String = chars.by_ref().take(digits).map(|(_, c)| c).collect();
            u32::from_str_radix(&text, radix).ok().and_then(char::from_u32)
        };
        let c = match escaped {
            'n' => Some('\n'),
            't' => Some('\t'),
            'r' => Some('\r'),
            'a' => Some('\u{7}'),
            'b' => Some('\u{8}'),
            'f' => Some('\u{c}'),
            'v' => Some('\u{b}'),
            '\\' | '"' | '\'' => Some(escaped),
            'x' => code(2, 16),
            'u' => code(4, 16),
            'U' => code(8, 16),
            _ => None,
        };
        value.push(c.ok_or_else(|| format!("unknown escape \\{escaped}"))?);
    }
    Err("unclosed quotes".to_owned())
}

struct Parser {
    pieces: Peekable<IntoIter<Piece>>,
    depth: usize,
}

impl Parser {
    /// Reads parts up to the end of a block, and how it ended: by nothing, `end`, or `else` with what follows it.
    fn nodes(&mut self) -> Result<(Vec<Node>, Option<String>), Wrong> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err("the template is nested too deeply".to_owned());
        }
        let mut nodes = Vec::new();
        let mut ended = None;
        while let Some(piece) = self.pieces.peek_mut() {
            let tokens = match piece {
                Piece::Text(text) => {
                    nodes.push(Node::Text(std::mem::take(text)));
                    self.pieces.next();
                    continue;
                }
                Piece::Action(tokens) => std::mem::take(tokens),
            };
            let word = match tokens.first() {
                Some(Token::Word(word)) => word.as_str(),
                _ => "",
            };
            match word {
                "end" if tokens.len() == 1 => {
                    self.pieces.next();
                    ended = Some("end".to_owned());
                    break;
                }
                "else" => {
                    // `else if` is an `else` with an `if` in it, which is left for whoever reads that.
                    *piece = Piece::Action(tokens[1..].to_vec());
                    if tokens.len() == 1 {
                        self.pieces.next();
                    }
                    ended = Some(if tokens.len() == 1 { "else" } else { "else if" }.to_owned());
                    break;
                }
                "if" | "with" | "range" => {
                    let word = word.to_owned();
                    self.pieces.next();
                    nodes.push(self.block(&word, &tokens[1..])?);
                }
                "define" | "template" | "block" | "break" | "continue" => {
                    return Err(format!("{word} is not understood"));
                }
                _ => {
                    self.pieces.next();
                    nodes.push(Node::Action(pipeline(&tokens, false)?));
                }
            }
        }
        self.depth -= 1;
        Ok((nodes, ended))
    }

    fn block(&mut self, word: &str, tokens: &[Token]) -> Result<Node, Wrong> {
        let head = pipeline(tokens, word == "range")?;
        let (then, ended) = self.nodes()?;
        let otherwise = match ended.as_deref() {
            Some("end") => Vec::new(),
            Some("else if") => match self.pieces.next() {
                Some(Piece::Action(tokens)) => match tokens.first() {
                    Some(Token::Word(inner)) if ["if", "with"].contains(&inner.as_str()) => {
                        self.depth += 1;
                        let node = self.block(inner, &tokens[1..])?;
                        self.depth -= 1;
                        vec![node]
                    }
                    _ => return Err("else is followed by something else than if".to_owned()),
                },
                _ => return Err("unexpected end".to_owned()),
            },
            Some(_) => match self.nodes()? {
                (nodes, Some(end)) if end == "end" => nodes,
                _ => return Err(format!("{word} without its {{{{end}}}}")),
            },
            None => return Err(format!("{word} without its {{{{end}}}}")),
        };
        Ok(match word {
            "if" => Node::If { condition: head, then, otherwise },
            "with" => Node::With { value: head, then, otherwise },
            _ => Node::Range { over: head, each: then, otherwise },
        })
    }
}

/// Reads a whole action; of `range`, two variables may get the value.
fn pipeline(tokens: &[Token], ranges: bool) -> Result<Pipeline, Wrong> {
    let mut read = Pipeline::default();
    let mut rest = tokens;
    let set = rest.iter().position(|token| matches!(token, Token::Sign(":=" | "=")));
    if let Some(at) = set {
        for token in &rest[..at] {
            match token {
                Token::Variable(name) => read.variables.push(name.clone()),
                Token::Sign(",") if ranges => {}
                _ => return Err("only variables can be set".to_owned()),
            }
        }
        if read.variables.is_empty() || read.variables.len() > if ranges { 2 } else { 1 } {
            return Err("too many or too few variables".to_owned());
        }
        read.declares = rest[at] == Token::Sign(":=");
        rest = &rest[at + 1..];
    }
    let mut rest = rest.iter();
    read.commands = commands(&mut rest, 0)?;
    match rest.next() {
        None => Ok(read),
        Some(_) => Err("unexpected )".to_owned()),
    }
}

/// Reads commands up to the end or to a closing bracket, which stays.
fn commands(tokens: &mut std::slice::Iter<'_, Token>, depth: usize) -> Result<Vec<Vec<Argument>>, Wrong> {
    if depth > DEEPEST {
        return Err("brackets are nested too deeply".to_owned());
    }
    let (mut all, mut command) = (Vec::new(), Vec::new());
    while let Some(token) = tokens.as_slice().first() {
        if *token == Token::Sign(")") {
            break;
        }
        tokens.next();
        let argument = match token {
            Token::Sign("|") => {
                all.push(std::mem::take(&mut command));
                continue;
            }
            Token::Sign("(") => {
                let inner = Pipeline { commands: commands(tokens, depth + 1)?, ..Pipeline::default() };
                if tokens.next() != Some(&Token::Sign(")")) {
                    return Err("missing )".to_owned());
                }
                Argument::Pipeline(Box::new(inner), fields(tokens))
            }
            Token::Sign(sign) => return Err(format!("unexpected {sign}")),
            Token::Constant(value) => Argument::Constant(value.clone()),
            Token::Variable(name) => Argument::Variable(name.clone(), fields(tokens)),
            Token::Field(name, _) => {
                let mut names = Vec::new();
                if !name.is_empty() {
                    names.push(name.clone());
                    names.extend(fields(tokens));
                }
                Argument::Field(names)
            }
            Token::Word(word) => match word.as_str() {
                "true" => Argument::Constant(json!(true)),
                "false" => Argument::Constant(json!(false)),
                "nil" => Argument::Constant(Value::Null),
                _ => Argument::Function(word.clone()),
            },
        };
        command.push(argument);
    }
    all.push(command);
    if all.iter().any(Vec::is_empty) {
        return Err("an empty command".to_owned());
    }
    Ok(all)
}

/// Reads the fields that follow a value without a blank.
fn fields(tokens: &mut std::slice::Iter<'_, Token>) -> Vec<String> {
    let mut names = Vec::new();
    while let Some(Token::Field(name, true)) = tokens.as_slice().first() {
        names.push(name.clone());
        tokens.next();
    }
    names
}
