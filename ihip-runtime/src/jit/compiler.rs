//! One compilation a kernel, however many ask for it.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rayon::prelude::*;

use super::cache::{CacheKey, CubinStore, Entry};
use super::{Architecture, Cubin, Dump, JitError, Nvrtc, Overrides, cache_folder};

/// Room of the store that [`Compiler::from_environment`] opens: some thousand kernels.
pub const STORE_BYTES: u64 = 256 << 20;

/// Compiles for one architecture: a kernel comes from memory, else from the store, else from NVRTC.
///
/// Threads that ask for the same kernel at once wait for one compilation.
#[derive(Debug)]
pub struct Compiler {
    nvrtc: Nvrtc,
    architecture: Architecture,
    store: Option<CubinStore>,
    may_compile: bool,
    overrides: Option<Overrides>,
    dump: Option<Dump>,
    flights: Mutex<HashMap<CacheKey, Flight>>,
}

/// A compilation that is under way or done.
type Flight = Arc<OnceLock<Result<Arc<Cubin>, Arc<JitError>>>>;

impl Compiler {
    /// A compiler for `architecture` that keeps cubins in `store`, if there is one.
    ///
    /// With `may_compile` false, as `IHIP_NO_JIT=1` asks, a kernel that is not in the store is an error.
    #[must_use]
    pub fn new(nvrtc: Nvrtc, architecture: Architecture, store: Option<CubinStore>, may_compile: bool) -> Self {
        let (overrides, dump) = (None, None);
        Self { nvrtc, architecture, store, may_compile, overrides, dump, flights: Mutex::default() }
    }

    /// A compiler for `architecture` as the environment describes it: the NVRTC of [`Nvrtc::find`], the store `cubins`
    /// in [`cache_folder`] with room for [`STORE_BYTES`], no compilation at all where `IHIP_NO_JIT` is 1, and the
    /// [`Overrides`] and [`Dump`] that are asked for.
    ///
    /// A store that cannot be used costs the store and no more.
    ///
    /// # Errors
    /// Those of [`Nvrtc::find`], [`Overrides::from_environment`] and [`Dump::from_environment`].
    pub fn from_environment(architecture: Architecture) -> Result<Self, JitError> {
        let store = cache_folder().and_then(|cache| CubinStore::open(&cache.join("cubins"), STORE_BYTES, None).ok());
        let may_compile = std::env::var_os("IHIP_NO_JIT").is_none_or(|value| value != "1");
        let (overrides, dump) = (Overrides::from_environment()?, Dump::from_environment()?);
        Ok(Self { overrides, dump, ..Self::new(Nvrtc::find()?, architecture, store, may_compile) })
    }

    /// What it compiles for.
    #[must_use]
    pub const fn architecture(&self) -> Architecture {
        self.architecture
    }

    /// Fails where NVRTC does not compile for the architecture at all.
    ///
    /// # Errors
    /// [`JitError::UnsupportedArchitecture`].
    pub fn expect_architecture(&self) -> Result<(), JitError> {
        self.nvrtc.expect(self.architecture)
    }

    /// Major and minor version of the compiler.
    #[must_use]
    pub const fn nvrtc_version(&self) -> (u32, u32) {
        self.nvrtc.version()
    }

    /// The store, if there is one.
    #[must_use]
    pub const fn store(&self) -> Option<&CubinStore> {
        self.store.as_ref()
    }

    /// What is compiled for `kernel`: `text`, or what takes its place.
    ///
    /// # Errors
    /// [`JitError::Override`] where something that may not be used would take its place.
    pub fn source<'a>(&self, kernel: &str, text: &'a str) -> Result<Cow<'a, str>, JitError> {
        let replaced = self.overrides.as_ref().map(|overrides| overrides.text(kernel)).transpose()?.flatten();
        Ok(replaced.map_or(Cow::Borrowed(text), Cow::Owned))
    }

    /// The cubin of `text`, whose entry point is called `kernel`, or of what takes the text's place.
    ///
    /// # Errors
    /// Those of [`Nvrtc::compile`], shared by all who asked; [`JitError::Disabled`], [`JitError::Override`], and those
    /// of dumping.
    pub fn cubin(&self, kernel: &str, text: &str) -> Result<Arc<Cubin>, Arc<JitError>> {
        let text = &*self.source(kernel, text)?;
        let options = Nvrtc::options(self.architecture);
        let key = CacheKey::new(text, &options, &self.architecture.to_string(), self.nvrtc.version());
        let flight = {
            let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(flights.entry(key).or_default())
        };
        flight.get_or_init(|| self.find(key, kernel, text).map(Arc::new).map_err(Arc::new)).clone()
    }

    /// The cubins of `kernels` (name and text), in their order, compiled side by side on rayon's threads.
    /// `done` is told the name of each as it is ready.
    ///
    /// # Errors
    /// Those of [`Compiler::cubin`], of the first kernel in order that fails.
    pub fn cubins(
        &self,
        kernels: &[(&str, &str)],
        done: &(dyn Fn(&str) + Sync),
    ) -> Result<Vec<Arc<Cubin>>, Arc<JitError>> {
        let cubins: Vec<_> = kernels
            .par_iter()
            .map(|(kernel, text)| {
                let cubin = self.cubin(kernel, text);
                done(kernel);
                cubin
            })
            .collect();
        cubins.into_iter().collect()
    }

    fn find(&self, key: CacheKey, kernel: &str, text: &str) -> Result<Cubin, JitError> {
        let Some(dump) = &self.dump else { return self.make(key, kernel, text) };
        // The text goes first: it is wanted most where it does not compile.
        dump.text(kernel, text)?;
        let cubin = self.make(key, kernel, text)?;
        dump.compiled(&self.nvrtc, kernel, text, self.architecture, &cubin)?;
        Ok(cubin)
    }

    fn make(&self, key: CacheKey, kernel: &str, text: &str) -> Result<Cubin, JitError> {
        if let Some(entry) = self.store.as_ref().and_then(|store| store.get(&key)) {
            return Ok(Cubin { image: entry.image, resources: entry.resources });
        }
        if !self.may_compile {
            return Err(JitError::Disabled { kernel: kernel.to_owned(), architecture: self.architecture });
        }
        let cubin = self.nvrtc.compile(kernel, text, self.architecture)?;
        if let Some(store) = &self.store {
            store.put(&Entry {
                key,
                architecture: self.architecture.to_string(),
                kernel: kernel.to_owned(),
                nvrtc: self.nvrtc.version(),
                resources: cubin.resources,
                image: cubin.image.clone(),
            });
        }
        Ok(cubin)
    }
}
