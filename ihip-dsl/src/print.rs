//! A declaration as text of either door.

use std::fmt::{self, Display, Write};

use crate::ast::{Declaration, Item, Located, Scalar, Value};
use crate::words::Place;

impl<L> Display for Declaration<L> {
    /// As it stands in `pruning!`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.doc.is_empty() {
            self.doc.split('\n').try_for_each(|line| writeln!(f, "{}", format!("/// {line}").trim_end()))?;
        }
        let raw = if syn::parse_str::<syn::Ident>(&self.name.value).is_ok() { "" } else { "r#" };
        write!(f, "pub {raw}{}", self.name.value)?;
        if let Some(parent) = &self.parent {
            write!(f, ": {}", parent.value)?;
        }
        writeln!(f, " {{")?;
        sentences(f, &self.items, "    ")?;
        writeln!(f, "}}")
    }
}

/// Items that end in `;`, those that follow one another on one line, and blocks on lines of their own.
fn sentences<L>(f: &mut fmt::Formatter<'_>, items: &[Item<L>], indent: &str) -> fmt::Result {
    let mut line = String::new();
    for Item { word: Located { value: word, .. }, value } in items {
        if is_scalar(value) {
            let gap = if line.is_empty() { "" } else { " " };
            write!(line, "{gap}{};", phrase(word, value))?;
            continue;
        }
        if !line.is_empty() {
            writeln!(f, "{indent}{}", std::mem::take(&mut line))?;
        }
        match value {
            Value::Layers { first, last, items } => {
                let last = if first.value == last.value { String::new() } else { format!("..={}", last.value) };
                writeln!(f, "\n{indent}{word} {}{last} {{", first.value)?;
                sentences(f, items, &format!("{indent}    "))?;
                writeln!(f, "{indent}}}")?;
            }
            Value::Block(items) if Place::separator(word) == Some(';') => {
                writeln!(f, "\n{indent}{word} {{")?;
                sentences(f, items, &format!("{indent}    "))?;
                writeln!(f, "{indent}}}")?;
            }
            _ => writeln!(f, "{indent}{}", phrase(word, value))?,
        }
    }
    if line.is_empty() { Ok(()) } else { writeln!(f, "{indent}{line}") }
}

const fn is_scalar<L>(value: &Value<L>) -> bool {
    matches!(value, Value::Missing | Value::Scalar(_))
}

/// A word and what follows it, on one line.
fn phrase<L>(word: &str, value: &Value<L>) -> String {
    match value {
        Value::Missing => word.to_owned(),
        Value::Scalar(scalar) => format!("{word} {}", scalar.value),
        Value::Block(items) => format!("{word} {}", braces(word, items)),
        Value::Layers { first, last, items } => {
            format!("{word} {}..={} {}", first.value, last.value, braces(word, items))
        }
    }
}

fn braces<L>(word: &str, items: &[Item<L>]) -> String {
    let phrases = items.iter().map(|Item { word, value }| (phrase(&word.value, value), is_scalar(value)));
    let separator = Place::separator(word).unwrap_or(',');
    let text = match separator {
        ',' => phrases.map(|(phrase, _)| phrase).collect::<Vec<_>>().join(", "),
        end => phrases
            .map(|(phrase, ends)| if ends { format!("{phrase}{end}") } else { phrase })
            .collect::<Vec<_>>()
            .join(" "),
    };
    if text.is_empty() { "{}".to_owned() } else { format!("{{ {text} }}") }
}

impl<L> Declaration<L> {
    /// As it stands in a file.
    #[must_use]
    pub fn toml(&self) -> String {
        let mut text = format!("name = {}\n", quoted(&self.name.value));
        if let Some(parent) = &self.parent {
            text += &format!("inherit = {}\n", quoted(&parent.value));
        }
        if !self.doc.is_empty() {
            text += &format!("doc = {}\n", quoted(&self.doc));
        }
        table(&mut text, "", &self.items);
        text
    }
}

/// The pairs of a table, then the tables within it: TOML knows no way back from a table.
fn table<L>(text: &mut String, path: &str, items: &[Item<L>]) {
    for item in items.iter().filter(|item| is_scalar(&item.value)) {
        *text += &format!("{}\n", pair(item));
    }
    for Item { word: Located { value: word, .. }, value } in items {
        let (Value::Block(items) | Value::Layers { items, .. }) = value else {
            continue;
        };
        let path = if path.is_empty() { key(word) } else { format!("{path}.{}", key(word)) };
        *text += &if repeats(word) { format!("\n[[{path}]]\n") } else { format!("\n[{path}]\n") };
        if let Value::Layers { first, last, .. } = value {
            *text += &format!("{} = {}\n", key(word), range(first, last));
        }
        table(text, &path, items);
    }
}

/// A word and what follows it, on one line of a file.
pub(crate) fn pair<L>(Item { word: Located { value: word, .. }, value }: &Item<L>) -> String {
    let key = key(word);
    let inline = |layers: Option<String>, items: &[Item<L>]| {
        let pairs: Vec<_> = layers.into_iter().chain(items.iter().map(pair)).collect();
        let table = if pairs.is_empty() { "{}".to_owned() } else { format!("{{ {} }}", pairs.join(", ")) };
        if repeats(word) { format!("{key} = [{table}]") } else { format!("{key} = {table}") }
    };
    match value {
        Value::Missing => format!("{key} = true"),
        Value::Scalar(scalar) => format!("{key} = {}", literal(&scalar.value)),
        Value::Block(items) => inline(None, items),
        Value::Layers { first, last, items } => {
            let layers = format!("{key} = {}", range(first, last));
            if items.is_empty() { layers } else { inline(Some(layers), items) }
        }
    }
}

fn repeats(word: &str) -> bool {
    Place::home(word).is_some_and(|(_, word)| word.repeats)
}

fn range<L>(first: &Located<Scalar, L>, last: &Located<Scalar, L>) -> String {
    match (&first.value, &last.value) {
        (first, last) if first == last => literal(first),
        (first, last) => quoted(&format!("{first}..={last}")),
    }
}

fn key(word: &str) -> String {
    let bare = !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if bare { word.to_owned() } else { quoted(&word.replace('\n', " ")) }
}

fn literal(scalar: &Scalar) -> String {
    match scalar {
        Scalar::Word(word) => quoted(word),
        Scalar::Number(_) | Scalar::Path(_) | Scalar::Other(_) => scalar.to_string(),
    }
}

/// A text in the quotes that suit it.
pub(crate) fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}
