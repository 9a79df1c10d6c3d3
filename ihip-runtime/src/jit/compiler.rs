//! One compilation a kernel, however many ask for it.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rayon::prelude::*;

use super::cache::{CacheKey, CubinStore, Entry, Secret};
use super::{Architecture, Cubin, Dump, JitError, Nvrtc, Overrides, cache_folder, library};

/// Room of the store that [`store`] opens: some thousand kernels.
pub const STORE_BYTES: u64 = 256 << 20;

/// Compiles for one architecture: a kernel comes from memory, else from the store, else from NVRTC.
///
/// Threads that ask for the same kernel at once wait for one compilation.
#[derive(Debug)]
pub struct Compiler {
    /// `None` where nothing may be compiled: then the library need not even be there.
    nvrtc: Option<Nvrtc>,
    /// Versions of NVRTC whose entries of the store will do: its own, or where there is none all that there are, the
    /// newest first.
    versions: Vec<(u32, u32)>,
    architecture: Architecture,
    /// Whose entries of the store will do, the architecture itself first.
    accepted: Vec<Architecture>,
    store: Option<CubinStore>,
    overrides: Option<Overrides>,
    dump: Option<Dump>,
    watch: Watch,
    flights: Mutex<HashMap<CacheKey, Flight>>,
    compiled: AtomicUsize,
    loaded: AtomicUsize,
}

/// A compilation that is under way or done.
type Flight = Arc<OnceLock<Result<Arc<Cubin>, Arc<JitError>>>>;

/// Kernels that a [`Compiler`] has come by so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compilations {
    /// Those that were compiled.
    pub compiled: usize,
    /// Those that the store had.
    pub loaded: usize,
}

/// How far [`Compiler::cubins`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress<'a> {
    /// So many kernels are asked for.
    Begins {
        /// Kernels.
        kernels: usize,
    },
    /// A kernel is ready.
    Ready {
        /// Its name.
        kernel: &'a str,
    },
    /// All are ready, or one has failed.
    Ends,
}

/// What hears of [`Progress`].
type Listener = dyn Fn(Progress<'_>) + Send + Sync;

/// Whoever wants to hear of [`Progress`], from whichever thread.
#[derive(Clone, Default)]
pub struct Watch(Option<Arc<Listener>>);

impl Watch {
    /// Calls `watch` at every step.
    #[must_use]
    pub fn new(watch: impl Fn(Progress<'_>) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(watch)))
    }

    fn tell(&self, progress: Progress<'_>) {
        if let Some(watch) = &self.0 {
            watch(progress);
        }
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watch")
    }
}

/// The store `cubins` in `cache`, with room for [`STORE_BYTES`], and signed where `IHIP_CACHE_KEY` names a key file.
///
/// # Errors
/// [`JitError::CacheKey`], [`JitError::Store`].
pub fn store(cache: &Path) -> Result<CubinStore, JitError> {
    let secret = library::variable("IHIP_CACHE_KEY").map(|file| Secret::read(Path::new(&file))).transpose();
    let secret = secret.map_err(JitError::CacheKey)?;
    CubinStore::open(&cache.join("cubins"), STORE_BYTES, secret).map_err(JitError::Store)
}

impl Compiler {
    /// A compiler for `architecture` that keeps cubins in `store`, if there is one.
    #[must_use]
    pub fn new(nvrtc: Nvrtc, architecture: Architecture, store: Option<CubinStore>) -> Self {
        let versions = vec![nvrtc.version()];
        Self { nvrtc: Some(nvrtc), versions, ..Self::without_nvrtc(architecture, store) }
    }

    /// One that compiles nothing, as `IHIP_NO_JIT=1` asks: a kernel that is not in the store is an error. Entries of every
    /// version of NVRTC will do, those of the newest first, for nothing is compiled that could differ from them.
    #[must_use]
    pub fn without_nvrtc(architecture: Architecture, store: Option<CubinStore>) -> Self {
        Self {
            nvrtc: None,
            versions: store.as_ref().map(CubinStore::versions).unwrap_or_default(),
            architecture,
            accepted: vec![architecture],
            store,
            overrides: None,
            dump: None,
            watch: Watch::default(),
            flights: Mutex::default(),
            compiled: AtomicUsize::new(0),
            loaded: AtomicUsize::new(0),
        }
    }

    /// A compiler for `architecture` as the environment describes it: the NVRTC of [`Nvrtc::find`], or none where
    /// `IHIP_NO_JIT` is 1, the [`store`] in [`cache_folder`], and the [`Overrides`] and [`Dump`] that are asked for.
    ///
    /// A store that cannot be used costs the store and a note on standard error, and no more.
    ///
    /// # Errors
    /// Those of [`Self::keeping`]; [`JitError::CacheKey`], because who asks for signatures does not want to go without.
    pub fn from_environment(architecture: Architecture) -> Result<Self, JitError> {
        let store = match cache_folder().map(|cache| store(&cache)).transpose() {
            Ok(store) => store,
            Err(JitError::Store(refused)) => {
                // Whoever closed standard error does not want to know.
                let _ = writeln!(io::stderr(), "note: compiled kernels are not kept: {refused}");
                None
            }
            Err(error) => return Err(error),
        };
        Self::keeping(architecture, store)
    }

    /// The same with a store that is there already, or with none.
    ///
    /// # Errors
    /// Those of [`Nvrtc::find`], [`Overrides::from_environment`] and [`Dump::from_environment`]; [`JitError::NoJitWord`].
    pub fn keeping(architecture: Architecture, store: Option<CubinStore>) -> Result<Self, JitError> {
        let may_compile = match library::variable("IHIP_NO_JIT") {
            None => true,
            Some(value) if value == "1" => false,
            Some(value) => return Err(JitError::NoJitWord { value: value.to_string_lossy().into_owned() }),
        };
        let (overrides, dump) = (Overrides::from_environment()?, Dump::from_environment()?);
        let compiler = if may_compile {
            Self::new(Nvrtc::find()?, architecture, store)
        } else {
            Self::without_nvrtc(architecture, store)
        };
        Ok(Self { overrides, dump, ..compiler })
    }

    /// The same for a GPU, which runs the store's entries of every [`Architecture`] whose code it understands.
    #[must_use]
    pub fn for_gpu(self) -> Self {
        Self { accepted: self.architecture.alike(), ..self }
    }

    /// The same with someone who hears how far it is.
    #[must_use]
    pub fn watched(self, watch: Watch) -> Self {
        Self { watch, ..self }
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
        self.nvrtc.as_ref().map_or(Ok(()), |nvrtc| nvrtc.expect(self.architecture))
    }

    /// Major and minor version of NVRTC; where nothing may be compiled the newest that the store has kernels of, 0 where
    /// it has none.
    #[must_use]
    pub fn nvrtc_version(&self) -> (u32, u32) {
        self.versions.first().copied().unwrap_or_default()
    }

    /// The store, if there is one.
    #[must_use]
    pub const fn store(&self) -> Option<&CubinStore> {
        self.store.as_ref()
    }

    /// Kernels so far, each counted once.
    #[must_use]
    pub fn compilations(&self) -> Compilations {
        let read = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
        Compilations { compiled: read(&self.compiled), loaded: read(&self.loaded) }
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
        let flight = {
            let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(flights.entry(key(text, self.architecture, self.nvrtc_version())).or_default())
        };
        flight.get_or_init(|| self.find(kernel, text).map(Arc::new).map_err(Arc::new)).clone()
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
        self.watch.tell(Progress::Begins { kernels: kernels.len() });
        let cubins: Vec<_> = kernels
            .par_iter()
            .map(|&(kernel, text)| {
                let cubin = self.cubin(kernel, text);
                self.watch.tell(Progress::Ready { kernel });
                done(kernel);
                cubin
            })
            .collect();
        self.watch.tell(Progress::Ends);
        cubins.into_iter().collect()
    }

    fn find(&self, kernel: &str, text: &str) -> Result<Cubin, JitError> {
        let Some(dump) = &self.dump else { return self.make(kernel, text) };
        // The text goes first: it is wanted most where it does not compile.
        dump.text(kernel, text)?;
        let cubin = self.make(kernel, text)?;
        dump.compiled(self.nvrtc.as_ref(), kernel, text, self.architecture, &cubin)?;
        Ok(cubin)
    }

    fn make(&self, kernel: &str, text: &str) -> Result<Cubin, JitError> {
        if let Some(store) = &self.store {
            let of_version = |&version| self.accepted.iter().map(move |&accepted| key(text, accepted, version));
            let mut keys = self.versions.iter().flat_map(of_version);
            if let Some(entry) = keys.find_map(|key| store.get(&key)) {
                self.loaded.fetch_add(1, Ordering::Relaxed);
                return Ok(Cubin { image: entry.image, resources: entry.resources });
            }
        }
        let Some(nvrtc) = &self.nvrtc else {
            return Err(JitError::Disabled { kernel: kernel.to_owned(), architecture: self.architecture });
        };
        let cubin = nvrtc.compile(kernel, text, self.architecture)?;
        self.compiled.fetch_add(1, Ordering::Relaxed);
        if let Some(store) = &self.store {
            store.put(&Entry {
                key: key(text, self.architecture, nvrtc.version()),
                architecture: self.architecture.to_string(),
                kernel: kernel.to_owned(),
                nvrtc: nvrtc.version(),
                resources: cubin.resources,
                image: cubin.image.clone(),
            });
        }
        Ok(cubin)
    }
}

fn key(text: &str, architecture: Architecture, nvrtc: (u32, u32)) -> CacheKey {
    CacheKey::new(text, &Nvrtc::options(architecture), &architecture.to_string(), nvrtc)
}
