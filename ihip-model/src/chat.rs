//! The chat template of a model file.

use std::path::{Path, PathBuf};

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, context};

use crate::tokenizer::{Special, Tokenizer};
use crate::weights::Malformed;
use crate::weights::gguf::Gguf;
use crate::{Error, Result};

/// A template that turns messages into the text that the model was trained on.
#[derive(Debug)]
pub struct ChatTemplate {
    path: PathBuf,
    environment: Environment<'static>,
    bos: String,
    eos: String,
}

const TEMPLATE: &str = "tokenizer.chat_template";

/// Stands for the user's message while the template is rendered.
const MARK: &str = "\u{E000}message of the user\u{E000}";
/// White space at the ends of the mark, which shows where a template trims the message.
const EDGE: &str = "\u{2003}";

impl ChatTemplate {
    /// The template of a file.
    ///
    /// # Errors
    /// [`Error::Malformed`] when there is none or its value is no string, [`Error::Template`] when it does not compile.
    pub(crate) fn read<B: AsRef<[u8]>>(file: &Gguf<B>, path: &Path) -> Result<Self> {
        let malformed = |reason| Error::Malformed {
            path: path.into(),
            reason,
        };
        let template = file
            .string(TEMPLATE)
            .map_err(malformed)?
            .ok_or_else(|| malformed(Malformed::NoChatTemplate))?;
        let mut environment = Environment::new();
        // What Hugging Face's templates are written for.
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build();
        environment.set_syntax(syntax.expect("the standard delimiters"));
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function(
            "raise_exception",
            |message: String| -> std::result::Result<String, _> {
                Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
            },
        );
        environment
            .add_template_owned(TEMPLATE, template.to_owned())
            .map_err(|source| Error::Template {
                path: path.into(),
                source,
            })?;
        let token = |key: &str| -> std::result::Result<String, Malformed> {
            let Some(id) = file.unsigned(key)? else {
                return Ok(String::new());
            };
            let token = file
                .strings("tokenizer.ggml.tokens")?
                .and_then(|mut tokens| tokens.nth(id));
            Ok(token.unwrap_or_default().to_owned())
        };
        Ok(Self {
            path: path.into(),
            environment,
            bos: token("tokenizer.ggml.bos_token_id").map_err(malformed)?,
            eos: token("tokenizer.ggml.eos_token_id").map_err(malformed)?,
        })
    }

    /// The tokens of a conversation of one user message, up to where the answer begins. Control tokens of the template
    /// are tokens; the message is plain text, whatever is written in it.
    ///
    /// # Errors
    /// [`Error::Template`] when the template fails, [`Error::TemplateWithoutMessage`], or [`Error::Encode`].
    pub fn encode(&self, tokenizer: &Tokenizer, message: &str) -> Result<Vec<u32>> {
        let rendered = self.render(&[EDGE, MARK, EDGE].concat())?;
        let pieces: Vec<&str> = rendered.split(MARK).collect();
        let [_, .., last] = pieces.as_slice() else {
            return Err(Error::TemplateWithoutMessage {
                path: self.path.clone(),
            });
        };
        let mut parts = Vec::new();
        for pair in pieces.windows(2) {
            let message = if pair[0].ends_with(EDGE) {
                message
            } else {
                message.trim_start()
            };
            let message = if pair[1].starts_with(EDGE) {
                message
            } else {
                message.trim_end()
            };
            parts.push((without_edges(pair[0]), Special::Parse));
            parts.push((message, Special::PlainText));
        }
        parts.push((without_edges(last), Special::Parse));
        tokenizer.encode_parts(&parts)
    }

    fn render(&self, message: &str) -> Result<String> {
        let fail = |source| Error::Template {
            path: self.path.clone(),
            source,
        };
        let template = self.environment.get_template(TEMPLATE).map_err(fail)?;
        let messages = [context! { role => "user", content => message }];
        let context = context! {
            messages,
            bos_token => self.bos.as_str(),
            eos_token => self.eos.as_str(),
            add_generation_prompt => true,
        };
        template.render(context).map_err(fail)
    }
}

fn without_edges(piece: &str) -> &str {
    let piece = piece.strip_prefix(EDGE).unwrap_or(piece);
    piece.strip_suffix(EDGE).unwrap_or(piece)
}
