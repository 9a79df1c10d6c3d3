//! The grammar, from Rust tokens.
//!
//! ```text
//! declaration  =  attribute* visibility name ( : path )? { item* }
//! item         =  word scalar? ;  |  word { field,* }  |  word { item* }  |  word scalar ( ..= scalar )? { item* }
//! field        =  word scalar
//! scalar       =  number  |  word  |  path
//! ```
//!
//! A mistake is noted and skipped up to the next `;` or `,`, so that one pass finds all of them. Which words there
//! are is no matter of the grammar: [`crate::check`] knows them.

use proc_macro2::{Delimiter, Span, TokenStream, TokenTree};
use quote::ToTokens;
use syn::ext::IdentExt;
use syn::parse::{Parse, ParseStream, Parser};
use syn::{Attribute, Expr, ExprLit, Ident, Lit, LitInt, Meta, Token, Visibility, braced, token};

use crate::ast::{Declaration, Item, Located, Path, Scalar, Value};
use crate::check::Known;
use crate::error::{Errors, Position, Rule};
use crate::words::{LAYER, Place};
use crate::{Pipeline, ast, check};

/// What stands between the braces of `pruning!`.
#[derive(Default)]
pub struct Declarations {
    /// Every declaration whose name and braces were found.
    pub declarations: Vec<Written>,
    /// What is wrong outside of them.
    pub errors: Errors<Span>,
}

/// A declaration as it stands in Rust.
pub struct Written {
    /// Attributes of the type, doc comment included.
    pub attributes: Vec<Attribute>,
    /// Visibility of the type.
    pub visibility: Visibility,
    /// Name of the type.
    pub ident: Ident,
    /// The type that it inherits from.
    pub parent: Option<syn::Path>,
    /// What the language sees of it.
    pub declaration: Declaration<Span>,
    /// What is no sentence of the grammar in it.
    pub errors: Errors<Span>,
}

/// Reads every declaration in `tokens`, past any mistake.
#[must_use]
pub fn declarations(tokens: TokenStream) -> Declarations {
    if let Some(at) = too_deep(&tokens, 0) {
        let mut declarations = Declarations::default();
        declarations.errors.push(at, unexpected("{".to_owned(), "the words of a block, fewer blocks deep,"));
        return declarations;
    }
    match Parser::parse2(Declarations::parse, tokens) {
        Ok(declarations) => declarations,
        // Every mistake has a rule of its own; this one is for what only the parser library knows.
        Err(error) => {
            let mut declarations = Declarations::default();
            declarations.errors.push(error.span(), unexpected(error.to_string(), "a declaration"));
            declarations
        }
    }
}

/// Brackets within each other at most: far more than any declaration needs, far fewer than a stack holds.
const DEPTH: usize = 80;

/// The first bracket that stands in too many others.
fn too_deep(tokens: &TokenStream, depth: usize) -> Option<Span> {
    tokens.clone().into_iter().find_map(|token| match token {
        TokenTree::Group(group) if depth == DEPTH => Some(group.span_open()),
        TokenTree::Group(group) => too_deep(&group.stream(), depth + 1),
        _ => None,
    })
}

/// Reads and checks every declaration in `text`; each may inherit from one above.
///
/// # Errors
/// Every broken rule, with its line and column.
pub fn parse_str(text: &str) -> Result<Vec<Pipeline>, Errors<Position>> {
    parse_str_among(text, &[])
}

/// Reads and checks every declaration in `text`; each may inherit from one above or from one of `known`.
///
/// # Errors
/// Every broken rule, with its line and column.
pub fn parse_str_among(text: &str, known: &Known<'_>) -> Result<Vec<Pipeline>, Errors<Position>> {
    let tokens = text.parse::<TokenStream>().map_err(|error| {
        let at = position(error.span());
        // Where the lexer keeps no places, which it does not where it is fuzzed, everything is at line 0.
        let line = text.lines().nth(at.line.saturating_sub(1)).unwrap_or_default();
        let rest = line.chars().skip(at.column.saturating_sub(1));
        let mut errors = Errors::new();
        let expected = "a word, a number or a brace that is closed again";
        errors.push(at, unexpected(rest.take_while(|c| !c.is_whitespace()).collect(), expected));
        errors
    })?;
    let Declarations { mut declarations, mut errors } = declarations(tokens);
    errors.append(check::names(declarations.iter().map(|written| &written.declaration.name)));
    for written in &mut declarations {
        errors.append(std::mem::take(&mut written.errors));
    }
    let (checked, found) = check::all(declarations.iter().map(|written| &written.declaration), known);
    errors.append(found);
    errors.locate(position).or(checked.into_iter().map(|checked| checked.pipeline).collect())
}

/// First and last layer.
type Range = (Located<Scalar, Span>, Located<Scalar, Span>);

/// Reads the layers in `text`, which stands in quotes, such as `2` or `0..=2`; `None` where nothing in it can be one.
pub(crate) fn layers(text: &str) -> Option<(Range, Errors<Span>)> {
    let mut reader = Reader { errors: Errors::new() };
    let range = |input: ParseStream<'_>| {
        let first = scalar(input)?;
        let last = reader.range_end(input, &first, "\"")?;
        if !input.is_empty() {
            let expected =
                if last.is_some() { "the end of the layers" } else { "nothing, or `..=` and the last layer," };
            reader.errors.push(input.span(), unexpected(next(input), expected));
            input.parse::<TokenStream>()?;
        }
        let last = last.unwrap_or_else(|| first.clone());
        Ok((first, last))
    };
    let range = range.parse_str(text).ok()?;
    Some((range, reader.errors))
}

/// The one item in `text`, a piece of the language in a message; `None` where it is none.
pub(crate) fn item(text: &str) -> Option<Item<Span>> {
    let mut reader = Reader { errors: Errors::new() };
    let items = (|input: ParseStream<'_>| reader.items(input, ';')).parse_str(text).ok()?;
    <[Item<Span>; 1]>::try_from(items).ok().map(|[item]| item)
}

fn position(span: Span) -> Position {
    let start = span.start();
    Position { line: start.line, column: start.column + 1 }
}

fn unexpected(found: String, expected: &'static str) -> Rule {
    Rule::Unexpected { found, expected }
}

impl Parse for Declarations {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let mut this = Self::default();
        while !input.is_empty() {
            match Header::parse(input, &mut this.errors) {
                Some(Header { attributes, visibility, ident, parent }) => {
                    let mut reader = Reader { errors: Errors::new() };
                    let content;
                    braced!(content in input);
                    let items = reader.items(&content, ';')?;
                    let declaration = Declaration {
                        name: Located { value: ident.unraw().to_string(), at: ident.span() },
                        parent: parent.as_ref().and_then(|path| {
                            let name = &path.segments.last()?.ident;
                            Some(Located { value: name.unraw().to_string(), at: name.span() })
                        }),
                        doc: doc(&attributes),
                        items,
                    };
                    let errors = reader.errors;
                    this.declarations.push(Written { attributes, visibility, ident, parent, declaration, errors });
                }
                None => skip_block(input)?,
            }
        }
        Ok(this)
    }
}

/// What stands before the braces of a declaration.
struct Header {
    attributes: Vec<Attribute>,
    visibility: Visibility,
    ident: Ident,
    parent: Option<syn::Path>,
}

impl Header {
    /// `None`, and the reason among `errors`, where it is broken or no braces follow.
    fn parse(input: ParseStream<'_>, errors: &mut Errors<Span>) -> Option<Self> {
        let mut expect = |found: bool, expected| {
            if !found {
                errors.push(input.span(), unexpected(next(input), expected));
            }
            found.then_some(())
        };
        let attributes = input.call(Attribute::parse_outer);
        expect(attributes.is_ok(), "an attribute such as `/// …`")?;
        let visibility = input.parse::<Visibility>();
        expect(visibility.is_ok(), "`pub` or `pub(crate)`")?;
        expect(input.peek(Ident), "the name of a pipeline, as in `pub Name { … }`,")?;
        let ident = input.parse().ok()?;
        let parent = if input.peek(Token![:]) && !input.peek(Token![::]) {
            input.parse::<Token![:]>().ok()?;
            let named = input.peek(Ident::peek_any) || input.peek(Token![::]);
            let parent = if named { input.call(syn::Path::parse_mod_style).ok() } else { None };
            expect(parent.is_some(), "the pipeline to inherit from, as in `pub Name: Parent { … }`,")?;
            parent
        } else {
            None
        };
        expect(input.peek(token::Brace), "`{` with the words of the pipeline")?;
        Some(Self { attributes: attributes.ok()?, visibility: visibility.ok()?, ident, parent })
    }
}

/// Reads items and notes what is wrong with them.
struct Reader {
    errors: Errors<Span>,
}

impl Reader {
    /// Items up to the end of `input`, each scalar followed by `separator`; the last `,` may be left out.
    fn items(&mut self, input: ParseStream<'_>, separator: char) -> syn::Result<Vec<Item<Span>>> {
        let mut items = Vec::new();
        while !input.is_empty() {
            if !input.peek(Ident::peek_any) {
                self.errors.push(input.span(), unexpected(next(input), "a word of the language or `}`"));
                skip_item(input)?;
                continue;
            }
            let ident = input.call(Ident::parse_any)?;
            let word = Located { value: ident.unraw().to_string(), at: ident.span() };
            let value = self.value(input, &word.value)?;
            match &value {
                Value::Scalar(scalar) => self.separator(input, separator, &word, scalar)?,
                Value::Missing => {
                    let left_out = input.is_empty() && separator == ',';
                    if Place::takes_nothing(&word.value) && !at_separator(input) && !left_out {
                        let after = word.value.clone();
                        self.errors.push(word.at, Rule::MissingSeparator { after, separator });
                    }
                    skip_item(input)?;
                }
                Value::Block(_) | Value::Layers { .. } => {
                    if separator == ',' && input.peek(Token![,]) {
                        input.parse::<Token![,]>()?;
                    }
                }
            }
            items.push(Item { word, value });
        }
        Ok(items)
    }

    fn value(&mut self, input: ParseStream<'_>, word: &str) -> syn::Result<Value<Span>> {
        // What other languages have between a word and its value is one mistake, and the value is none.
        if input.peek(Token![=]) || input.peek(Token![:]) && !input.peek(Token![::]) {
            self.errors.push(input.span(), Rule::SignBeforeValue { word: word.to_owned(), sign: next(input) });
            input.parse::<TokenTree>()?;
        }
        if input.peek(token::Brace) {
            return Ok(Value::Block(self.block(input, word, ',')?));
        }
        if input.is_empty() || at_separator(input) {
            return Ok(Value::Missing);
        }
        let first = scalar(input)?;
        let listed = (input.peek(Token![,]) || input.peek(Token![-])) && input.peek2(LitInt);
        if word == LAYER.name && listed {
            self.errors.push(input.span(), unexpected(next(input), "`{`, or `..=` and the last layer,"));
            while !input.is_empty() && !input.peek(token::Brace) && !input.peek(Token![;]) {
                input.parse::<TokenTree>()?;
            }
        }
        let last = self.range_end(input, &first, "}")?;
        if last.is_none() && !input.peek(token::Brace) {
            return Ok(Value::Scalar(first));
        }
        let items = if input.peek(token::Brace) {
            self.block(input, word, ';')?
        } else {
            self.errors.push(input.span(), unexpected(next(input), "`{` after the layers"));
            skip_item(input)?;
            Vec::new()
        };
        let last = last.unwrap_or_else(|| first.clone());
        Ok(Value::Layers { first, last, items })
    }

    /// The items between braces; those of an unknown word are separated by `otherwise`.
    fn block(&mut self, input: ParseStream<'_>, word: &str, otherwise: char) -> syn::Result<Vec<Item<Span>>> {
        let separator = match (Place::separator(word), Place::home(word)) {
            (Some(separator), _) => separator,
            (None, Some(_)) => {
                input.parse::<TokenTree>()?;
                return Ok(Vec::new());
            }
            (None, None) => otherwise,
        };
        let content;
        braced!(content in input);
        self.items(&content, separator)
    }

    /// `..=` and the last layer, if they follow `first`; `end` is what stands behind `input`.
    fn range_end(
        &mut self,
        input: ParseStream<'_>,
        first: &Located<Scalar, Span>,
        end: &str,
    ) -> syn::Result<Option<Located<Scalar, Span>>> {
        let half_open = if input.peek(Token![..=]) {
            input.parse::<Token![..=]>()?;
            false
        } else if input.peek(Token![..]) {
            input.parse::<Token![..]>()?;
            true
        } else {
            return Ok(None);
        };
        if input.is_empty() || at_separator(input) || input.peek(token::Brace) {
            let found = if input.is_empty() { end.to_owned() } else { next(input) };
            self.errors.push(input.span(), unexpected(found, "the last layer"));
            return Ok(Some(first.clone()));
        }
        let last = scalar(input)?;
        if let (true, &Scalar::Number(first), &Scalar::Number(end)) = (half_open, &first.value, &last.value) {
            self.errors.push(last.at, Rule::HalfOpenRange { first, end });
        }
        Ok(Some(last))
    }

    fn separator(
        &mut self,
        input: ParseStream<'_>,
        separator: char,
        word: &Located<String, Span>,
        scalar: &Located<Scalar, Span>,
    ) -> syn::Result<()> {
        let follows = if input.peek(Token![;]) {
            input.parse::<Token![;]>()?;
            Some(';')
        } else if input.peek(Token![,]) {
            input.parse::<Token![,]>()?;
            Some(',')
        } else {
            None
        };
        if follows == Some(separator) || (input.is_empty() && follows.is_none() && separator == ',') {
            return Ok(());
        }
        if follows.is_none() && !input.is_empty() && !input.peek(Ident::peek_any) {
            let expected = if separator == ';' { "`;`" } else { "`,` or `}`" };
            self.errors.push(input.span(), unexpected(next(input), expected));
            return skip_item(input);
        }
        let after = format!("{} {}", word.value, scalar.value);
        self.errors.push(scalar.at, Rule::MissingSeparator { after, separator });
        Ok(())
    }
}

/// One token, or a sign and a number.
fn scalar(input: ParseStream<'_>) -> syn::Result<Located<Scalar, Span>> {
    let at = input.span();
    let value = if input.peek(Token![::]) || input.peek(Ident::peek_any) && input.peek2(Token![::]) {
        match input.call(syn::Path::parse_mod_style) {
            Ok(path) => Scalar::Path(Path(path.into_token_stream())),
            Err(_) => Scalar::Other("::".to_owned()),
        }
    } else if input.peek(Ident::peek_any) {
        Scalar::Word(input.call(Ident::parse_any)?.to_string())
    } else if input.peek(LitInt) {
        let number = input.parse::<LitInt>()?;
        match number.base10_parse() {
            Ok(value) if number.suffix().is_empty() => Scalar::Number(value),
            _ => Scalar::Other(number.to_string()),
        }
    } else {
        let mut text = next(input);
        let sign = input.parse::<TokenTree>()?;
        if matches!(&sign, TokenTree::Punct(sign) if sign.as_char() == '-') && input.peek(Lit) {
            text += &next(input);
            input.parse::<TokenTree>()?;
        }
        Scalar::Other(text)
    };
    Ok(Located { value, at })
}

/// How the next token looks in a message.
fn next(input: ParseStream<'_>) -> String {
    match input.cursor().token_tree() {
        Some((TokenTree::Group(group), _)) => match group.delimiter() {
            Delimiter::Parenthesis => "(".to_owned(),
            Delimiter::Brace => "{".to_owned(),
            Delimiter::Bracket => "[".to_owned(),
            Delimiter::None => group.to_string(),
        },
        Some((token, _)) => token.to_string(),
        None => "}".to_owned(),
    }
}

fn at_separator(input: ParseStream<'_>) -> bool {
    input.peek(Token![;]) || input.peek(Token![,])
}

/// Skips what is left of an item, its separator included.
fn skip_item(input: ParseStream<'_>) -> syn::Result<()> {
    while !input.is_empty() {
        let end = at_separator(input) || input.peek(token::Brace);
        input.parse::<TokenTree>()?;
        if end {
            break;
        }
    }
    Ok(())
}

/// Skips what is left of a declaration, its braces included.
fn skip_block(input: ParseStream<'_>) -> syn::Result<()> {
    while !input.is_empty() {
        let end = input.peek(token::Brace);
        input.parse::<TokenTree>()?;
        if end {
            break;
        }
    }
    Ok(())
}

/// The doc comment among `attributes`, each line without the space that follows the slashes.
fn doc(attributes: &[Attribute]) -> String {
    let line = |attribute: &Attribute| match &attribute.meta {
        Meta::NameValue(meta) if meta.path.is_ident("doc") => match &meta.value {
            Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) => Some(text.value()),
            _ => None,
        },
        _ => None,
    };
    let lines: Vec<_> = attributes.iter().filter_map(line).collect();
    let lines = lines.iter().flat_map(|text| text.split('\n'));
    let lines: Vec<_> = lines.map(|line| line.strip_prefix(' ').unwrap_or(line)).collect();
    ast::doc(&lines.join("\n"))
}
