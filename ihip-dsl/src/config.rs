//! The grammar, from TOML: the tree that [`crate::parse`] makes of Rust tokens, and so the same rules and messages.
//!
//! ```toml
//! name = "Mine"
//! doc = "Sink, window and what one stage keeps."
//! sink = 256
//! window = 1024
//!
//! [[stage]]
//! chunk = 32
//!
//! [attend]
//! keep = 2048
//!
//! [rope]
//! scan = "relative"
//! attend = "streaming"
//!
//! [[layers]]
//! layers = "0..=2"
//! attend = { keep = 4096 }
//! ```
//!
//! A key is a word, a table its block, an array of tables the word once for each of them. What no TOML may say, the
//! `toml` crate finds; the tree is built from the events of its parser, because its tables forget in which order keys
//! stood and which of them stood twice.

use std::borrow::Cow;
use std::ops::Range;

use proc_macro2::Span;
use toml::de::DeTable;
use toml_parser::decoder::ScalarKind;
use toml_parser::parser::{Event, EventKind, RecursionGuard, parse_document};
use toml_parser::{ParseError, Source};

use crate::ast::{Declaration, Item, Located, Scalar, Value};
use crate::check::{Checked, Known};
use crate::error::{Error, Errors, Position, Region, Rule};
use crate::words::{Place, Takes};
use crate::{Clash, Pipeline, ast, check, parse};

/// Tables and arrays within each other at most, as the `toml` crate has it.
const DEPTH: u32 = 80;

/// Names in one key at most, those of the tables around it apart: more than any word has around it, few enough that
/// tables stay shallow.
const NAMES: usize = 8;

/// Bytes of the text.
type Bytes = Range<usize>;

/// A name that breaks no rule, for what has none.
const UNNAMED: &str = "Unnamed";

/// Reads and checks the pipeline in `text`, which inherits from none.
///
/// # Errors
/// Every broken rule, with where it stands.
pub fn parse_toml(text: &str) -> Result<Pipeline, Errors<Region>> {
    parse_toml_among(text, &[]).map(|checked| checked.pipeline)
}

/// Reads and checks the pipeline in `text`, which may inherit from one of `known`.
///
/// # Errors
/// Every broken rule, with where it stands.
pub fn parse_toml_among(text: &str, known: &Known<'_>) -> Result<Checked<Region>, Errors<Region>> {
    let lines = Lines::new(text);
    let mut errors = Errors::new();
    let events = events(text);
    if let Some(key) = events.as_ref().and_then(|events| too_long(events)) {
        errors.push(key, Rule::Toml { problem: format!("a key of more than {NAMES} names") });
        return Err(errors.locate(|bytes| lines.region(&bytes)));
    }
    let refused: Vec<Error<Bytes>> = DeTable::parse_recoverable(text).1.iter().map(refusal).collect();
    if let Some(Tree { declaration, wrong, unquoted, errors: found }) = events.and_then(|events| tree(text, &events)) {
        errors.append(found);
        // A value that TOML refuses is one error, whatever the rules make of it.
        let is_wrong = |at: &Bytes| wrong.iter().any(|wrong| wrong.start <= at.start && at.end <= wrong.end);
        let is_told = |at: &Bytes| unquoted.iter().any(|told| told.start <= at.start && at.end <= told.end);
        errors.extend(refused.iter().filter(|error| is_wrong(&error.at) && !is_told(&error.at)).cloned());
        match check::check(&declaration, known) {
            Ok(checked) if errors.is_empty() && refused.is_empty() => {
                return Ok(checked.locate(|bytes| lines.region(&bytes)));
            }
            Ok(_) => {}
            Err(found) => errors.extend(found.into_iter().filter(|error| !is_wrong(&error.at))),
        }
    }
    // What else no TOML may say, such as a key that stands twice, is told where the rules do not tell it better.
    if errors.is_empty() {
        errors.extend(refused);
    }
    Err(errors.locate(|bytes| lines.region(&bytes)))
}

fn refusal(error: &toml::de::Error) -> Error<Bytes> {
    Error { at: error.span().unwrap_or(0..0), rule: Rule::Toml { problem: error.message().to_owned() } }
}

/// What the language sees of a text.
struct Tree {
    declaration: Declaration<Bytes>,
    /// Values that TOML refuses.
    wrong: Vec<Bytes>,
    /// Those of them that are words without quotes, and told as such.
    unquoted: Vec<Bytes>,
    errors: Errors<Bytes>,
}

/// What stands in the text, white space and comments apart; `None` where it does not follow TOML's grammar.
fn events(text: &str) -> Option<Vec<Event>> {
    let source = Source::new(text);
    let mut events: Vec<Event> = Vec::new();
    let mut broken: Vec<ParseError> = Vec::new();
    parse_document(&source.lex().into_vec(), &mut RecursionGuard::new(&mut events, DEPTH), &mut broken);
    let content = |event: &Event| {
        !matches!(event.kind(), EventKind::Whitespace | EventKind::Comment | EventKind::Newline | EventKind::KeySep)
    };
    events.retain(content);
    broken.is_empty().then_some(events)
}

/// The first key of too many names.
fn too_long(events: &[Event]) -> Option<Bytes> {
    let keys = events.chunk_by(|a, b| a.kind() == EventKind::SimpleKey && b.kind() == EventKind::SimpleKey);
    let mut keys = keys.filter(|key| key[0].kind() == EventKind::SimpleKey);
    keys.find(|key| key.len() > NAMES).map(|key| bytes(&key[0]).start..bytes(&key[NAMES]).end)
}

/// `None` where the text does not follow TOML's grammar.
fn tree(text: &str, events: &[Event]) -> Option<Tree> {
    let mut reader = Reader {
        source: Source::new(text),
        events: events.iter(),
        name: None,
        parent: None,
        doc: String::new(),
        wrong: Vec::new(),
        unquoted: Vec::new(),
        errors: Errors::new(),
        end: 0,
    };
    let items = reader.document()?;
    let Reader { name, parent, doc, wrong, unquoted, mut errors, .. } = reader;
    let name = name.unwrap_or_else(|| {
        let missing = Clash::MissingWord { word: NAME, place: Place::Pipeline, example: "name = \"Mine\"" };
        errors.push(0..0, Rule::Clash(missing));
        Located { value: UNNAMED.to_owned(), at: 0..0 }
    });
    Some(Tree { declaration: Declaration { name, parent, doc, items }, wrong, unquoted, errors })
}

/// Names that no type of Rust can have.
const NO_TYPES: [&str; 4] = ["self", "Self", "super", "crate"];

/// Key of the pipeline's name.
const NAME: &str = "name";
/// Key of the pipeline that it inherits from.
const INHERIT: &str = "inherit";
/// Key of its doc comment.
const DOC: &str = "doc";

/// Reads events that follow TOML's grammar; `None` where they do not.
struct Reader<'t> {
    source: Source<'t>,
    events: std::slice::Iter<'t, Event>,
    name: Option<Located<String, Bytes>>,
    parent: Option<Located<String, Bytes>>,
    doc: String,
    /// Values that TOML refuses.
    wrong: Vec<Bytes>,
    /// Those of them that are words without quotes.
    unquoted: Vec<Bytes>,
    errors: Errors<Bytes>,
    /// Where the table or array that was read last ends.
    end: usize,
}

/// What follows a key.
enum Follows {
    /// A number, a word or a table.
    One(Value<Bytes>),
    /// An array of tables.
    Each(Vec<(Bytes, Vec<Item<Bytes>>)>),
}

impl Reader<'_> {
    fn document(&mut self) -> Option<Vec<Item<Bytes>>> {
        let mut root = Vec::new();
        let mut path = Vec::new();
        while let Some(event) = self.events.next() {
            match event.kind() {
                EventKind::StdTableOpen | EventKind::ArrayTableOpen => {
                    path = self.keys(None)?;
                    let (word, parents) = path.split_last()?;
                    table(&mut root, parents).push(Item { word: word.clone(), value: Value::Block(Vec::new()) });
                }
                EventKind::SimpleKey => self.pair(event, table(&mut root, &path), path.is_empty())?,
                _ => return None,
            }
        }
        Some(self.layers(root))
    }

    /// Keys with dots between them, past what follows the last.
    fn keys(&mut self, first: Option<&Event>) -> Option<Vec<Located<String, Bytes>>> {
        let mut keys: Vec<_> = first.map(|event| self.key(event)).into_iter().collect();
        loop {
            let event = self.events.next()?;
            match event.kind() {
                EventKind::SimpleKey => keys.push(self.key(event)),
                EventKind::KeyValSep | EventKind::StdTableClose | EventKind::ArrayTableClose => return Some(keys),
                _ => return None,
            }
        }
    }

    fn key(&mut self, event: &Event) -> Located<String, Bytes> {
        let mut value = String::new();
        if let Some(raw) = self.source.get(event) {
            raw.decode_key(&mut value, &mut ());
        }
        Located { value, at: bytes(event) }
    }

    /// A key that begins at `event` and what follows it, among `items`.
    fn pair(&mut self, event: &Event, items: &mut Vec<Item<Bytes>>, outermost: bool) -> Option<()> {
        let keys = self.keys(Some(event))?;
        let (word, parents) = keys.split_last()?;
        if outermost && parents.is_empty() && [NAME, INHERIT, DOC].contains(&word.value.as_str()) {
            return self.header(&word.value);
        }
        let items = table(items, parents);
        match self.follows()?.1 {
            Follows::One(value) => items.push(Item { word: word.clone(), value }),
            Follows::Each(tables) => items.extend(tables.into_iter().map(|(at, items)| Item {
                word: Located { value: word.value.clone(), at },
                value: Value::Block(items),
            })),
        }
        Some(())
    }

    /// What follows the key of something that stands outside of the braces of a declaration.
    fn header(&mut self, key: &str) -> Option<()> {
        let text = self.events.as_slice().first().and_then(|event| self.string(event));
        let (at, _) = self.follows()?;
        match text {
            Some(name) if key == NAME && !NO_TYPES.contains(&name.as_str()) => {
                self.name = Some(Located { value: name, at });
            }
            Some(name) if key == INHERIT => self.parent = Some(Located { value: name, at }),
            Some(text) if key == DOC => self.doc = ast::doc(&text),
            _ => {
                let expected = match key {
                    NAME => "a name in quotes, as in `name = \"Mine\"`,",
                    INHERIT => "a name in quotes, as in `inherit = \"Paper3k\"`,",
                    _ => "a text in quotes",
                };
                let found = self.excerpt(&at);
                self.errors.push(at.clone(), Rule::Unexpected { found, expected });
                self.name.get_or_insert(Located { value: UNNAMED.to_owned(), at });
            }
        }
        Some(())
    }

    /// What the text at `event` says, if it stands in quotes.
    fn string(&self, event: &Event) -> Option<String> {
        let mut text = String::new();
        let raw = self.source.get(event).filter(|_| event.kind() == EventKind::Scalar)?;
        matches!(raw.decode_scalar(&mut text, &mut ()), ScalarKind::String if event.encoding().is_some())
            .then_some(text)
    }

    fn follows(&mut self) -> Option<(Bytes, Follows)> {
        let event = self.events.next()?;
        let start = bytes(event).start;
        let follows = match event.kind() {
            EventKind::Scalar => {
                let scalar = Located { value: self.scalar(event)?, at: bytes(event) };
                return Some((bytes(event), Follows::One(Value::Scalar(scalar))));
            }
            EventKind::InlineTableOpen => Follows::One(Value::Block(self.inline_table()?)),
            EventKind::ArrayOpen => self.array(start)?,
            _ => return None,
        };
        Some((start..self.end, follows))
    }

    fn inline_table(&mut self) -> Option<Vec<Item<Bytes>>> {
        let mut items = Vec::new();
        loop {
            let event = self.events.next()?;
            match event.kind() {
                EventKind::InlineTableClose => {
                    self.end = bytes(event).end;
                    return Some(items);
                }
                EventKind::SimpleKey => self.pair(event, &mut items, false)?,
                EventKind::ValueSep => {}
                _ => return None,
            }
        }
    }

    /// Tables are a word each; anything else counts as one value.
    fn array(&mut self, start: usize) -> Option<Follows> {
        let (mut tables, mut others) = (Vec::new(), false);
        loop {
            let event = self.events.as_slice().first()?;
            match event.kind() {
                EventKind::ArrayClose => {
                    self.events.next();
                    self.end = bytes(event).end;
                    break;
                }
                EventKind::ValueSep => drop(self.events.next()),
                _ => match self.follows()? {
                    (at, Follows::One(Value::Block(items))) => tables.push((at, items)),
                    _ => others = true,
                },
            }
        }
        if others || tables.is_empty() {
            let at = start..self.end;
            let value = Scalar::Other(self.excerpt(&at));
            return Some(Follows::One(Value::Scalar(Located { value, at })));
        }
        Some(Follows::Each(tables))
    }

    fn scalar(&mut self, event: &Event) -> Option<Scalar> {
        let (mut text, mut refused) = (Cow::Borrowed(""), Vec::new());
        let kind = self.source.get(event)?.decode_scalar(&mut text, &mut refused);
        let number = match kind {
            ScalarKind::Integer(radix) => u64::from_str_radix(&text, radix.value()).ok(),
            _ => None,
        };
        let is_word = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_alphanumeric() || c == '_');
        if !refused.is_empty() {
            self.wrong.push(bytes(event));
            text = Cow::Borrowed(self.source.get(event)?.as_str());
            if is_word(&text) && text.starts_with(char::is_alphabetic) {
                self.unquoted.push(bytes(event));
                let problem = format!("words stand in quotes, write `\"{text}\"`");
                self.errors.push(bytes(event), Rule::Toml { problem });
            }
        }
        let bare = is_word(&text);
        Some(match (kind, number) {
            (_, Some(number)) => Scalar::Number(number),
            (ScalarKind::String, _) if bare && !text.starts_with(|c: char| c.is_numeric()) => {
                Scalar::Word(text.into_owned())
            }
            _ if !refused.is_empty() => Scalar::Word(text.into_owned()),
            _ => Scalar::Other(self.excerpt(&bytes(event))),
        })
    }

    /// What stands at `at`, for a message.
    fn excerpt(&self, at: &Bytes) -> String {
        self.source.input()[at.clone()].to_owned()
    }

    /// `items` with each table of a word that takes layers told apart from the layers in it, and `true` read as that the
    /// word stands there.
    fn layers(&mut self, items: Vec<Item<Bytes>>) -> Vec<Item<Bytes>> {
        items
            .into_iter()
            .map(|Item { word, value }| {
                let value = match value {
                    Value::Block(items) => {
                        let items = self.layers(items);
                        match Place::home(&word.value).map(|(_, word)| word.takes) {
                            Some(Takes::Layers(_)) => self.range(&word.value, items),
                            _ => Value::Block(items),
                        }
                    }
                    Value::Scalar(Located { value: Scalar::Other(text), .. })
                        if text == "true" && Place::takes_nothing(&word.value) =>
                    {
                        Value::Missing
                    }
                    other => other,
                };
                Item { word, value }
            })
            .collect()
    }

    /// The table of `word`, whose key of the same name says for which layers it is.
    fn range(&mut self, word: &str, mut items: Vec<Item<Bytes>>) -> Value<Bytes> {
        let key = items.iter().position(|item| item.word.value == word && matches!(item.value, Value::Scalar(_)));
        let Some(Value::Scalar(scalar)) = key.map(|key| items.remove(key).value) else {
            return Value::Block(items);
        };
        let Located { value, at } = &scalar;
        let (first, last) = match value {
            Scalar::Other(text) if text.starts_with(['"', '\'']) => {
                self.quoted_range(text, at).unwrap_or((scalar.clone(), scalar))
            }
            _ => (scalar.clone(), scalar),
        };
        Value::Layers { first, last, items }
    }

    /// The layers in the quotes of `text`, which stands at `at`.
    fn quoted_range(&mut self, text: &str, at: &Bytes) -> Option<(Located<Scalar, Bytes>, Located<Scalar, Bytes>)> {
        let inner = text.get(1..text.len().checked_sub(1)?)?;
        let ((first, last), errors) = parse::layers(inner)?;
        let start = at.start + 1;
        // What is missing at the end is missing where the closing quote stands.
        let moved = |span: Span| match span.byte_range() {
            bytes if bytes.is_empty() => at.end - 1..at.end,
            bytes => start + bytes.start..start + bytes.end,
        };
        self.errors.extend(errors.into_iter().map(|Error { at, rule }| Error { at: moved(at), rule }));
        let place = |Located { value, at }: Located<Scalar, Span>| Located { value, at: moved(at) };
        Some((place(first), place(last)))
    }
}

/// The words at `path` within `items`: of the last table of that name, or of a new one.
fn table<'i>(items: &'i mut Vec<Item<Bytes>>, path: &[Located<String, Bytes>]) -> &'i mut Vec<Item<Bytes>> {
    let Some((word, rest)) = path.split_first() else {
        return items;
    };
    let known = |item: &Item<Bytes>| item.word.value == word.value && matches!(item.value, Value::Block(_));
    let index = items.iter().rposition(known).unwrap_or_else(|| {
        items.push(Item { word: word.clone(), value: Value::Block(Vec::new()) });
        items.len() - 1
    });
    match &mut items[index].value {
        Value::Block(items) => table(items, rest),
        _ => unreachable!("the item at the index is a block"),
    }
}

fn bytes(event: &Event) -> Bytes {
    event.span().start()..event.span().end()
}

/// Where the lines of a text begin.
struct Lines<'t> {
    text: &'t str,
    starts: Vec<usize>,
}

impl<'t> Lines<'t> {
    fn new(text: &'t str) -> Self {
        let breaks = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        Self { text, starts: std::iter::once(0).chain(breaks.map(|(at, _)| at + 1)).collect() }
    }

    fn region(&self, bytes: &Bytes) -> Region {
        Region { start: self.position(bytes.start), end: self.position(bytes.end) }
    }

    fn position(&self, byte: usize) -> Position {
        let line = self.starts.partition_point(|start| *start <= byte);
        let before = self.text.get(self.starts[line - 1]..byte).unwrap_or_default();
        Position { line, column: before.chars().count() + 1 }
    }
}
