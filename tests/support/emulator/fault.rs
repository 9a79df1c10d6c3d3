//! Signals that a kernel's accesses raise, turned into failures of its thread.

use std::cell::Cell;
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::sync::OnceLock;

use super::thread::{Fault, end_by_fault};

const SIGNALS: [i32; 2] = [libc::SIGSEGV, libc::SIGBUS];
/// Bytes of the stack that handlers run on, where the thread of the host has none yet.
const HANDLER_STACK: usize = 1 << 16;

/// What was done about the signals before.
static BEFORE: OnceLock<[libc::sigaction; 2]> = OnceLock::new();

thread_local! {
    static HAS_STACK: Cell<bool> = const { Cell::new(false) };
}

/// Makes the calling thread of the host ready to run kernels.
pub(super) fn prepare() {
    BEFORE.get_or_init(|| SIGNALS.map(install));
    if HAS_STACK.replace(true) {
        return;
    }
    // SAFETY: asks for the handlers' stack of this thread, and sets one that is never freed where there is none: a
    // fault may come from the overflow of a stack, on which no handler could run.
    unsafe {
        let mut stack = MaybeUninit::<libc::stack_t>::zeroed().assume_init();
        libc::sigaltstack(std::ptr::null(), &raw mut stack);
        if stack.ss_flags & libc::SS_DISABLE != 0 {
            let memory = Box::leak(vec![0_u8; HANDLER_STACK].into_boxed_slice());
            stack = libc::stack_t { ss_sp: memory.as_mut_ptr().cast(), ss_flags: 0, ss_size: HANDLER_STACK };
            libc::sigaltstack(&raw const stack, std::ptr::null_mut());
        }
    }
}

fn install(signal: i32) -> libc::sigaction {
    // SAFETY: a zeroed sigaction is a valid one. SA_NODEFER: the handler leaves by a switch of stacks and not by
    // returning, so the signal must not stay blocked.
    unsafe {
        let mut before = MaybeUninit::<libc::sigaction>::zeroed().assume_init();
        let mut action = before;
        action.sa_sigaction = handle as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
        libc::sigaction(signal, &raw const action, &raw mut before);
        before
    }
}

unsafe extern "C" fn handle(signal: i32, information: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the system calls this on the thread that faulted. Where no kernel was running there, the signal is given
    // back to whoever handled it before: it is raised again by the return.
    unsafe {
        let code = instruction(context.cast());
        end_by_fault(Fault { address: (*information).si_addr() as usize, code });
        let before = BEFORE.get().zip(SIGNALS.iter().position(|&known| known == signal));
        if let Some((before, at)) = before {
            libc::sigaction(signal, &raw const before[at], std::ptr::null_mut());
        }
    }
}

/// What the interrupted thread was about to do.
unsafe fn instruction(context: *const libc::ucontext_t) -> usize {
    // SAFETY: the system's description of what it interrupted.
    let machine = unsafe { &(*context).uc_mcontext };
    #[cfg(target_arch = "x86_64")]
    let code = machine.gregs[libc::REG_RIP as usize];
    #[cfg(target_arch = "aarch64")]
    let code = machine.pc;
    code as usize
}
