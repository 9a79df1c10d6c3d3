//! The `pruning!` macro. All it does is in [`ihip_dsl::macro_support`], where it can be tested without a compiler.
#![forbid(unsafe_code)]

use proc_macro::TokenStream;

/// Declares pruning pipelines, checked while the program compiles.
///
/// ```text
/// pruning! {
///     /// What `ihip generate --pruning Mine` runs.
///     pub Mine {
///         query_block 64;                                  // queries that share a ranking; 64 where left out
///         sink 256;                                        // first tokens, always seen
///         window 1_024;                                    // last tokens, always seen
///
///         stage {              chunk 64, query_stride 4, refresh 16 }
///         stage { keep 16_384, chunk  8, refresh 8 }       // keep: tokens that enter the stage
///         attend { keep 2_048 }                            // tokens that the attention reads besides
///
///         rope { scan relative, attend streaming }
///         refresh staggered;                               // layers renew their masks in turn, not together
///         decode { attend { keep 1_024 } }                 // what differs in a phase
///         layers 0..=2 { attend { keep 4_096 } }           // layers counted from 0; the rest is inherited
///     }
///
///     /// Everything as in `Mine`, or in any other type declared so, but for these words.
///     pub Half: Mine { attend { keep sizes::HALF } }       // constants of any integer type stand for numbers
///
///     pub Every { dense; }                                 // attends to every key; in a phase or in layers as well
/// }
/// ```
///
/// What is said of layers goes before what is said of a phase, and that before what is said of the pipeline; a phase
/// within `layers` goes before all of them. A phase or layers that are `dense` stay so whatever the other says.
///
/// Words of a child take the place of the same words of its parent; its stages, of all stages there. Its `layers` are
/// laid over those of the parent, which stay: where both name a layer, the parent's words hold that the child does not
/// say. The doc comment is its own.
///
/// Every declaration becomes a type that implements `ihip_model::Pruning`, and its pipeline can be found by name in
/// `ihip_model::registry`. Whatever breaks a rule of the language is a compile error at the token that breaks it, all
/// of them at once. What is legal but unwise is a warning there, as far as all its numbers are written out;
/// `#[allow(deprecated)]` before the declaration silences it.
#[proc_macro]
pub fn pruning(tokens: TokenStream) -> TokenStream {
    ihip_dsl::macro_support::expand(tokens.into()).into()
}
