//! What `pruning!` expands to.

use std::collections::BTreeSet;
use std::fmt::Debug;

use proc_macro2::{Ident, Span, TokenStream};
use quote::{ToTokens, format_ident, quote, quote_spanned};
use syn::Attribute;

use crate::ast::{Located, Scalar};
use crate::check;
use crate::declared::{Block, Field, Given, Range, Stage, Token};
use crate::draft::{Constant, Door, Draft};
use crate::error::{Error, Errors, Rule};
use crate::parse::{Declarations, Written, declarations};
use crate::warning::Warning;

/// Expands the tokens between the braces of `pruning!`.
///
/// Every declaration becomes a type that implements `ihip_model::Pruning` and registers itself by name. Where it
/// inherits, or constants stand for numbers, the rules run again in a constant for each of its tokens, which the
/// compiler underlines where a rule is broken. A declaration with errors becomes these errors and a type that is not
/// registered, so that one mistake does not raise others wherever the type is used.
#[must_use]
pub fn expand(tokens: TokenStream) -> TokenStream {
    let Declarations { declarations, mut errors } = declarations(tokens);
    errors.append(check::names(declarations.iter().map(|written| &written.declaration.name)));
    let mut names = BTreeSet::new();
    let mut types = TokenStream::new();
    for mut written in declarations {
        let mut found = std::mem::take(&mut written.errors);
        if let (Some(path), Some(Located { value: name, at })) = (&written.parent, &written.declaration.parent)
            && path.is_ident(&written.ident)
        {
            found.push(*at, Rule::ParentOfItself { name: name.clone() });
        }
        let mut draft = Draft::new(&written.declaration, Door::Rust);
        if written.parent.is_none() {
            draft.check();
        }
        found.append(std::mem::take(&mut draft.errors));
        let draft = Some(draft).filter(|_| found.is_empty());
        errors.append(found);
        if names.insert(written.declaration.name.value.clone()) {
            types.extend(pruning_type(&written, draft.as_ref()));
        }
    }
    let errors = compile_errors(errors);
    quote! { #errors #types }
}

/// One `compile_error!` an error, in the order in which they stand in the file.
fn compile_errors(errors: Errors<Span>) -> TokenStream {
    let mut errors: Vec<_> = errors.into_iter().collect();
    errors.sort_by_key(|error| (error.at.start().line, error.at.start().column));
    errors.into_iter().map(|Error { at, rule }| syn::Error::new(at, rule).into_compile_error()).collect()
}

/// The type of a declaration; what stands in for it where there is no draft without errors.
fn pruning_type(written: &Written, draft: Option<&Draft<Span>>) -> TokenStream {
    let Written { attributes, visibility, ident, declaration, parent, .. } = written;
    let (name, doc) = (&declaration.name.value, &declaration.doc);
    let conditions: Vec<_> = attributes.iter().filter(|attribute| attribute.path().is_ident("cfg")).collect();
    let private = private();
    let stand_in = || quote! { #private::declared::Declared::STAND_IN };
    let declared = draft.map_or_else(stand_in, |draft| declared(draft, parent.as_ref()));
    let registration = draft.map(|_| {
        quote! {
            #(#conditions)*
            #private::inventory::submit! {
                ::ihip_model::registry::Entry::new::<#ident>(::core::module_path!())
            }
        }
    });
    let has_constants = draft.is_some_and(|draft| !draft.constants.is_empty());
    let lint = has_constants.then(|| quote! { #[allow(clippy::identity_op)] });
    let checks = draft.map(|draft| checks(written, draft));
    let warnings = draft.filter(|_| parent.is_none()).map(|draft| warnings(attributes, draft));
    quote! {
        #(#attributes)*
        #[derive(Clone, Copy, Debug)]
        #visibility struct #ident;

        #(#conditions)*
        impl ::ihip_model::Pruning for #ident {
            #lint
            const DECLARED: &'static #private::declared::Declared = &#declared;

            fn pipeline() -> &'static ::ihip_model::Pipeline {
                static PIPELINE: #private::LazyLock<::ihip_model::Pipeline> = #private::LazyLock::new(|| {
                    <#ident as ::ihip_model::Pruning>::DECLARED.pipeline(#name, #doc)
                });
                &PIPELINE
            }
        }

        #registration
        #checks
        #warnings
    }
}

/// Constants that stop the build where a rule is broken that only the compiler can check, one for each token.
fn checks(written: &Written, draft: &Draft<Span>) -> TokenStream {
    let Written { attributes, ident, parent, .. } = written;
    if parent.is_none() && draft.constants.is_empty() {
        return TokenStream::new();
    }
    let conditions: Vec<_> = attributes.iter().filter(|attribute| attribute.path().is_ident("cfg")).collect();
    let private = private();
    let bounds = draft.constants.iter().map(|constant| {
        let Constant { word, least, most, .. } = constant;
        let span = draft.tokens[constant.token.index as usize];
        let number = number(constant, span);
        let check = quote_spanned! {span=> ::ihip_model::__private::Clash::refuse(#word, #least, #most, #number) };
        quote! {
            #(#conditions)*
            #[allow(clippy::identity_op)]
            const _: () = #check;
        }
    });
    let indices = 0_u32..;
    let tokens = indices.zip(&draft.tokens).map(|(index, span)| quote_spanned! {*span=> CLASHES.refuse(#index) });
    quote! {
        #(#bounds)*
        #(#conditions)*
        const _: () = {
            const CLASHES: #private::Clashes = #private::Clashes::of(<#ident as ::ihip_model::Pruning>::DECLARED);
            #(const _: () = #tokens;)*
        };
    }
}

/// A use of a deprecated constant for each warning: what a macro can have the compiler say without stopping the build.
/// An `#[allow(deprecated)]` of the declaration silences them.
fn warnings(attributes: &[Attribute], draft: &Draft<Span>) -> TokenStream {
    let kept = |attribute: &&Attribute| ["cfg", "allow"].iter().any(|name| attribute.path().is_ident(name));
    let attributes: Vec<_> = attributes.iter().filter(kept).collect();
    let warning = |Located { value, at }: Located<Warning, Span>| {
        let (unwise, note) = (Ident::new("UNWISE", at), value.to_string());
        quote! {
            #(#attributes)*
            const _: () = {
                #[deprecated(note = #note)]
                const UNWISE: () = ();
                #unwise
            };
        }
    };
    draft.warnings().into_iter().map(warning).collect()
}

/// What the expansion needs of `ihip_model`.
fn private() -> TokenStream {
    quote! { ::ihip_model::__private }
}

/// The value of a constant. Only an integer can stand here, of whatever type.
fn number(constant: &Constant, span: Span) -> TokenStream {
    let path = match &constant.scalar {
        Scalar::Path(path) => path.0.clone(),
        scalar => Ident::new(&scalar.to_string(), span).into_token_stream(),
    };
    quote_spanned! {span=> (#path | 0) as i128 }
}

fn declared(draft: &Draft<Span>, parent: Option<&syn::Path>) -> TokenStream {
    let private = private();
    let parent = match parent {
        Some(parent) => quote! { ::core::option::Option::Some(<#parent as ::ihip_model::Pruning>::DECLARED) },
        None => quote! { ::core::option::Option::None },
    };
    let refresh = field(draft, draft.declared.refresh);
    let blocks = draft.declared.blocks.iter().map(|block| self::block(draft, block));
    quote! {
        #private::declared::Declared {
            parent: #parent,
            refresh: #refresh,
            blocks: #private::Cow::Borrowed(&[#(#blocks),*]),
        }
    }
}

fn block(draft: &Draft<Span>, block: &Block) -> TokenStream {
    let private = private();
    let layers = match block.layers {
        Some(Range { first, last }) => {
            let (first, last) = (field(draft, first), field(draft, last));
            quote! { ::core::option::Option::Some(#private::declared::Range { first: #first, last: #last }) }
        }
        None => quote! { ::core::option::Option::None },
    };
    let phase = match block.phase {
        Some(phase) => {
            let phase = format_ident!("{phase:?}");
            quote! { ::core::option::Option::Some(#private::declared::Phase::#phase) }
        }
        None => quote! { ::core::option::Option::None },
    };
    let (here, dense) = (token(block.here), field(draft, block.dense));
    let fields = fields(draft, "Slot", &block.fields);
    let stages = block.stages.iter().map(|Stage { here, fields, .. }| {
        let (here, fields) = (token(*here), self::fields(draft, "StageSlot", fields));
        quote! { #private::declared::Stage { here: #here, wrong: false, fields: #fields } }
    });
    quote! {
        #private::declared::Block {
            layers: #layers,
            phase: #phase,
            inherited: false,
            here: #here,
            dense: #dense,
            fields: #fields,
            stages: #private::Cow::Borrowed(&[#(#stages),*]),
        }
    }
}

fn fields<S: Debug>(draft: &Draft<Span>, slots: &str, fields: &[(S, Field)]) -> TokenStream {
    let (private, slots) = (private(), format_ident!("{slots}"));
    let fields = fields.iter().map(|(slot, value)| {
        let (slot, value) = (format_ident!("{slot:?}"), field(draft, *value));
        quote! { (#private::declared::#slots::#slot, #value) }
    });
    quote! { #private::Cow::Borrowed(&[#(#fields),*]) }
}

fn field(draft: &Draft<Span>, field: Field) -> TokenStream {
    let private = private();
    match field {
        Field::Absent => quote! { #private::declared::Field::Absent },
        // Only a draft without errors is written out.
        Field::Wrong => quote! { #private::declared::Field::Wrong },
        Field::Given(Given { value, token }) => {
            let token = self::token(token);
            quote! { #private::declared::Field::Given(#private::declared::Given { value: #value, token: #token }) }
        }
        Field::Later(token) => {
            let constants = draft.constants.iter().filter(|constant| constant.token == token);
            let fields = constants.map(|constant| {
                let Constant { word, least, most, .. } = constant;
                let number = number(constant, draft.tokens[token.index as usize]);
                let token = self::token(token);
                quote! { #private::declared::Field::number(#word, #least, #most, #number, #token) }
            });
            fields.collect()
        }
    }
}

fn token(Token { index, .. }: Token) -> TokenStream {
    let private = private();
    quote! { #private::declared::Token { index: #index, depth: 0 } }
}

#[cfg(test)]
mod tests {
    use quote::quote;

    use super::expand;

    #[test]
    fn a_declaration_becomes_a_type_a_constant_and_a_registration() {
        let tokens = quote! {
            #[doc = " Sink, window and what one stage keeps."]
            pub Mine {
                sink 256; window 1_024;
                stage { chunk 32, query_stride 4, refresh 8 }
                attend { keep 2_048 }
                rope { scan relative, attend streaming }
                layers 0..=2 { attend { keep 4_096 } }
            }
        };
        let text = prettyplease::unparse(&syn::parse2(expand(tokens)).unwrap());
        insta::with_settings!({ snapshot_path => "../../tests/snapshots", prepend_module_to_snapshot => false }, {
            insta::assert_snapshot!("expansion", text);
        });
    }

    #[test]
    fn a_wrong_declaration_becomes_its_errors_and_a_type_that_is_not_registered() {
        let tokens = quote! { pub Mine { sink 256; } };
        let text = prettyplease::unparse(&syn::parse2(expand(tokens)).unwrap());
        assert_eq!(text.matches("compile_error!").count(), 2);
        assert!(text.contains("pub struct Mine;") && text.contains("Pruning for Mine"));
        assert!(!text.contains("submit!"));
    }
}
