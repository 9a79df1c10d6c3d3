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
///         layers 0..=2 { attend { keep 4_096 } }           // layers counted from 0; the rest is inherited
///     }
/// }
/// ```
///
/// Every declaration becomes a type that implements `ihip_model::Pruning`, and its pipeline can be found by name in
/// `ihip_model::registry`. Whatever breaks a rule of the language is a compile error at the token that breaks it, all
/// of them at once.
#[proc_macro]
pub fn pruning(tokens: TokenStream) -> TokenStream {
    ihip_dsl::macro_support::expand(tokens.into()).into()
}
