//! What `pruning!` expands to.

use std::borrow::Cow;
use std::collections::BTreeSet;

use proc_macro2::{Span, TokenStream};
use quote::{format_ident, quote};

use crate::error::{Error, Errors};
use crate::parse::{Declarations, Written, declarations};
use crate::{
    AttendRope, Attention, Halving, LayerPruning, LayerRange, Phases, Pipeline, Ranking, Refresh, Representative, Rope,
    ScanRope, Scoring, Stage, check,
};

/// Expands the tokens between the braces of `pruning!`.
///
/// Every declaration becomes a type that implements `ihip_model::Pruning` and registers itself by name. A declaration
/// with errors becomes these errors and a type that is not registered, so that one mistake does not raise others
/// wherever the type is used.
#[must_use]
pub fn expand(tokens: TokenStream) -> TokenStream {
    let Declarations { declarations, mut errors } = declarations(tokens);
    errors.append(check::names(declarations.iter().map(|written| &written.declaration.name)));
    let mut names = BTreeSet::new();
    let mut types = TokenStream::new();
    for mut written in declarations {
        errors.append(std::mem::take(&mut written.errors));
        let pipeline = check::check(&written.declaration).map_err(|found| errors.append(found)).ok();
        if names.insert(written.declaration.name.value.clone()) {
            types.extend(pruning_type(&written, pipeline.as_ref()));
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

fn pruning_type(written: &Written, pipeline: Option<&Pipeline>) -> TokenStream {
    let Written { attributes, visibility, ident, .. } = written;
    let conditions: Vec<_> = attributes.iter().filter(|attribute| attribute.path().is_ident("cfg")).collect();
    let description = description(pipeline.unwrap_or(&stand_in()));
    let registration = pipeline.map(|_| {
        quote! {
            #(#conditions)*
            ::ihip_model::__private::inventory::submit! {
                ::ihip_model::registry::Entry::new::<#ident>(::core::module_path!())
            }
        }
    });
    quote! {
        #(#attributes)*
        #[derive(Clone, Copy, Debug)]
        #visibility struct #ident;

        #(#conditions)*
        impl ::ihip_model::Pruning for #ident {
            fn pipeline() -> &'static ::ihip_model::Pipeline {
                use ::ihip_model::__private::*;
                static PIPELINE: Pipeline = #description;
                &PIPELINE
            }
        }

        #registration
    }
}

/// What stands in for a pipeline with errors; nobody ever runs it, since the errors stop the build.
fn stand_in() -> Pipeline {
    let base = LayerPruning {
        sink: 0,
        window: 1,
        query_block: 1,
        stages: Cow::Borrowed(&[]),
        keep: 0,
        ranking: Ranking::All,
        rope: Rope { scan: ScanRope::None, attend: AttendRope::None },
    };
    Pipeline::from_checked(Cow::Borrowed(""), Cow::Borrowed(""), Refresh::Together, base.into(), Cow::Borrowed(&[]))
}

fn description(pipeline: &Pipeline) -> TokenStream {
    let (name, doc, base) = (pipeline.name(), pipeline.doc(), phases(pipeline.base()));
    let refresh = format_ident!("{}", format!("{:?}", pipeline.refresh()));
    let overrides = pipeline.overrides().iter().map(|LayerRange { first, last, phases: of_layers }| {
        let of_layers = phases(of_layers);
        quote! { LayerRange { first: #first, last: #last, phases: #of_layers } }
    });
    quote! {
        Pipeline::from_checked(
            Cow::Borrowed(#name),
            Cow::Borrowed(#doc),
            Refresh::#refresh,
            #base,
            Cow::Borrowed(&[#(#overrides),*]),
        )
    }
}

fn phases(Phases { prefill, decode }: &Phases) -> TokenStream {
    let attention = |attention: &Attention| match attention {
        Attention::Dense => quote! { Attention::Dense },
        Attention::Pruned(pruning) => {
            let pruning = layer_pruning(pruning);
            quote! { Attention::Pruned(#pruning) }
        }
    };
    let (prefill, decode) = (attention(prefill), attention(decode));
    quote! { Phases { prefill: #prefill, decode: #decode } }
}

fn layer_pruning(pruning: &LayerPruning) -> TokenStream {
    let LayerPruning { sink, window, query_block, stages, keep, ranking, rope: Rope { scan, attend } } = pruning;
    let stages = stages.iter().map(stage);
    let (scan, attend) = (format_ident!("{scan:?}"), format_ident!("{attend:?}"));
    let ranking = format_ident!("{ranking:?}");
    quote! {
        LayerPruning {
            sink: #sink,
            window: #window,
            query_block: #query_block,
            stages: Cow::Borrowed(&[#(#stages),*]),
            keep: #keep,
            ranking: Ranking::#ranking,
            rope: Rope { scan: ScanRope::#scan, attend: AttendRope::#attend },
        }
    }
}

fn stage(stage: &Stage) -> TokenStream {
    let Stage { keep, chunk, query_block, query_stride, refresh, scoring, rope } = stage;
    let keep = match keep {
        Some(keep) => quote! { Option::Some(#keep) },
        None => quote! { Option::None },
    };
    let scoring = self::scoring(scoring);
    let rope = match rope {
        Some(rope) => {
            let rope = format_ident!("{rope:?}");
            quote! { Option::Some(ScanRope::#rope) }
        }
        None => quote! { Option::None },
    };
    quote! {
        Stage {
            keep: #keep,
            chunk: #chunk,
            query_block: #query_block,
            query_stride: #query_stride,
            refresh: #refresh,
            scoring: #scoring,
            rope: #rope,
        }
    }
}

fn scoring(scoring: &Scoring) -> TokenStream {
    let Scoring { representative, query_reduction, scores } = scoring;
    let representative = match representative {
        Representative::Halving(Halving { probe, chunk_score, descent }) => {
            let probe = format_ident!("{probe:?}");
            let chunk_score = format_ident!("{chunk_score:?}");
            let descent = format_ident!("{descent:?}");
            quote! {
                Representative::Halving(Halving {
                    probe: Probe::#probe,
                    chunk_score: ChunkScore::#chunk_score,
                    descent: Descent::#descent,
                })
            }
        }
        Representative::Mean => quote! { Representative::Mean },
        Representative::MinMax => quote! { Representative::MinMax },
        Representative::Exact => quote! { Representative::Exact },
    };
    let (query_reduction, scores) = (format_ident!("{query_reduction:?}"), format_ident!("{scores:?}"));
    quote! {
        Scoring {
            representative: #representative,
            query_reduction: QueryReduction::#query_reduction,
            scores: Scores::#scores,
        }
    }
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
