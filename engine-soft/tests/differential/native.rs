//! The host CPU as executor.
//!
//! A stub loads all registers from a control block at a fixed address, jumps to the instruction and comes back by a jump
//! behind it, or through the handler of the signal that it raised. The handler rewrites its context so that returning from
//! it lands in the stub's way out: nothing is unwound.
#![expect(unsafe_code, reason = "runs single instructions of a test on the host CPU")]

use std::arch::{asm, global_asm};
use std::mem::offset_of;
use std::sync::{Mutex, MutexGuard, Once};

use super::machine::{CODE, CODE_LIMIT, Executor, Fault, GUARD, Mode, Outcome, SCRATCH, SCRATCH_LEN, State};

const PAGE: usize = 0x1000;
const CODE_PAGE: u64 = CODE & !0xFFF;
const CONTROL: u64 = 0x2001_0000;
/// 64-bit code that leads from 32-bit code into the stub, at the start of the code page.
const WAY_OUT: u64 = CODE_PAGE;

#[repr(C)]
struct Control {
    state: State,
    host_rsp: u64,
    host_mxcsr: u32,
    host_ds: u16,
    host_es: u16,
    data: u32,
    host_ss: u32,
    exit: u64,
    /// m16:32 of the instruction.
    entry: u32,
    entry_cs: u16,
    /// An instruction of ours runs: signals are its faults.
    armed: u16,
    signalled: u32,
    vector: u32,
    code: u32,
    address: u64,
    /// Not zero: there are YMM registers.
    wide: u64,
}

global_asm!(
    ".pushsection .text",
    "nvsim_native_enter:",
    "push rbx", "push rbp", "push r12", "push r13", "push r14", "push r15",
    "mov [{control} + {host_rsp}], rsp",
    "stmxcsr [{control} + {mxcsr}]",
    "mov [{control} + {ds}], ds",
    "mov [{control} + {es}], es",
    "mov [{control} + {ss}], ss",
    "mov eax, [{control} + {data}]",
    "mov ds, eax",
    "mov es, eax",
    "fxrstor64 [{control} + {fx}]",
    "cmp qword ptr [{control} + {wide}], 0",
    "je 2f",
    ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
    "vinsertf128 ymm\\n, ymm\\n, [{control} + {upper} + 16 * \\n], 1",
    ".endr",
    "2:",
    "push qword ptr [{control} + {rflags}]",
    "popfq",
    "mov word ptr [{control} + {armed}], 1",
    "mov ss, eax",
    "mov rsp, [{control} + {gpr} + 32]",
    "mov rax, [{control} + {gpr}]",
    "mov rcx, [{control} + {gpr} + 8]",
    "mov rdx, [{control} + {gpr} + 16]",
    "mov rbx, [{control} + {gpr} + 24]",
    "mov rbp, [{control} + {gpr} + 40]",
    "mov rsi, [{control} + {gpr} + 48]",
    "mov rdi, [{control} + {gpr} + 56]",
    "mov r8, [{control} + {gpr} + 64]",
    "mov r9, [{control} + {gpr} + 72]",
    "mov r10, [{control} + {gpr} + 80]",
    "mov r11, [{control} + {gpr} + 88]",
    "mov r12, [{control} + {gpr} + 96]",
    "mov r13, [{control} + {gpr} + 104]",
    "mov r14, [{control} + {gpr} + 112]",
    "mov r15, [{control} + {gpr} + 120]",
    // JMP m16:32; the assembler would choose m16:64, which AMD processors do not have.
    ".byte 0xFF, 0x2C, 0x25",
    ".long {control} + {entry}",
    "nvsim_native_exit:",
    "mov [{control} + {gpr}], rax",
    "mov [{control} + {gpr} + 8], rcx",
    "mov [{control} + {gpr} + 16], rdx",
    "mov [{control} + {gpr} + 24], rbx",
    "mov [{control} + {gpr} + 32], rsp",
    "mov [{control} + {gpr} + 40], rbp",
    "mov [{control} + {gpr} + 48], rsi",
    "mov [{control} + {gpr} + 56], rdi",
    "mov [{control} + {gpr} + 64], r8",
    "mov [{control} + {gpr} + 72], r9",
    "mov [{control} + {gpr} + 80], r10",
    "mov [{control} + {gpr} + 88], r11",
    "mov [{control} + {gpr} + 96], r12",
    "mov [{control} + {gpr} + 104], r13",
    "mov [{control} + {gpr} + 112], r14",
    "mov [{control} + {gpr} + 120], r15",
    "mov ss, [{control} + {ss}]",
    "mov rsp, [{control} + {host_rsp}]",
    "pushfq",
    "pop qword ptr [{control} + {rflags}]",
    "fxsave64 [{control} + {fx}]",
    "cmp qword ptr [{control} + {wide}], 0",
    "je nvsim_native_resume",
    ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
    "vextractf128 [{control} + {upper} + 16 * \\n], ymm\\n, 1",
    ".endr",
    "vzeroupper",
    "nvsim_native_resume:",
    "mov word ptr [{control} + {armed}], 0",
    "mov ds, [{control} + {ds}]",
    "mov es, [{control} + {es}]",
    "fninit",
    "ldmxcsr [{control} + {mxcsr}]",
    // The host's flags: direction up, alignment unchecked.
    "push 0x202",
    "popfq",
    "pop r15", "pop r14", "pop r13", "pop r12", "pop rbp", "pop rbx",
    "ret",
    ".popsection",
    control = const CONTROL,
    fx = const offset_of!(Control, state.fx),
    gpr = const offset_of!(Control, state.gpr),
    rflags = const offset_of!(Control, state.rflags),
    upper = const offset_of!(Control, state.upper),
    wide = const offset_of!(Control, wide),
    host_rsp = const offset_of!(Control, host_rsp),
    mxcsr = const offset_of!(Control, host_mxcsr),
    ds = const offset_of!(Control, host_ds),
    es = const offset_of!(Control, host_es),
    ss = const offset_of!(Control, host_ss),
    data = const offset_of!(Control, data),
    armed = const offset_of!(Control, armed),
    entry = const offset_of!(Control, entry),
);

unsafe extern "C" {
    fn nvsim_native_enter();
    fn nvsim_native_exit();
    fn nvsim_native_resume();
}

fn control() -> *mut Control {
    CONTROL as *mut Control
}

/// The host CPU. There is one a process, because its pages have fixed addresses.
pub struct Native {
    mode: Mode,
    len: u64,
    _only: MutexGuard<'static, ()>,
}

static ONLY: Mutex<()> = Mutex::new(());
static PAGES: Once = Once::new();

impl Native {
    /// Waits until no other test has it.
    pub fn take() -> Self {
        let only = ONLY.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        PAGES.call_once(|| {
            map(SCRATCH - GUARD, GUARD as usize * 2 + SCRATCH_LEN, libc::PROT_NONE);
            protect(SCRATCH, SCRATCH_LEN, libc::PROT_READ | libc::PROT_WRITE);
            map(CODE_PAGE - GUARD, GUARD as usize, libc::PROT_NONE);
            map(CODE_PAGE, PAGE, libc::PROT_READ | libc::PROT_WRITE);
            map(CONTROL, PAGE, libc::PROT_READ | libc::PROT_WRITE);
            describe(0, CODE_PAGE, CODE_LIMIT, true);
            describe(1, SCRATCH, SCRATCH_LEN as u32 - 1, false);
            catch_signals();
        });
        signal_stack();
        Self { mode: Mode::Long, len: 0, _only: only }
    }

    /// Base of FS, which the host's threads need as it is.
    pub fn fs_base() -> u64 {
        let base: u64;
        // SAFETY: the first word of a thread's control block is its own address (the x86-64 psABI's TLS variant II).
        unsafe { asm!("mov {}, fs:[0]", out(reg) base, options(nostack, readonly, preserves_flags)) };
        base
    }
}

impl Executor for Native {
    fn load(&mut self, mode: Mode, code: &[u8]) {
        self.mode = mode;
        self.len = code.len() as u64;
        let mut page = [0xCC_u8; PAGE];
        let out = control_slot(offset_of!(Control, exit));
        page[..7].copy_from_slice(&out);
        let start = (CODE - CODE_PAGE) as usize;
        page[start..start + code.len()].copy_from_slice(code);
        let after = start + code.len();
        match mode {
            Mode::Long => page[after..after + 7].copy_from_slice(&out),
            Mode::Protected32 | Mode::Protected16 => {
                // JMP ptr16:32, in 16-bit code by prefix.
                let mut jump = vec![0xEA];
                jump.extend((WAY_OUT as u32).to_le_bytes());
                jump.extend(Mode::Long.selectors().0.to_le_bytes());
                if mode == Mode::Protected16 {
                    jump.insert(0, 0x66);
                }
                page[after..after + jump.len()].copy_from_slice(&jump);
            }
        }
        protect(CODE_PAGE, PAGE, libc::PROT_READ | libc::PROT_WRITE);
        // SAFETY: the page is mapped at this address, writable, and nobody else has a reference into it.
        unsafe { std::ptr::copy_nonoverlapping(page.as_ptr(), CODE_PAGE as *mut u8, PAGE) };
        protect(CODE_PAGE, PAGE, libc::PROT_READ | libc::PROT_EXEC);
    }

    fn scratch(&mut self) -> &mut [u8; SCRATCH_LEN] {
        // SAFETY: mapped readable and writable for the life of the process, and `Native` is the only one to have it.
        unsafe { &mut *(SCRATCH as *mut [u8; SCRATCH_LEN]) }
    }

    fn run(&mut self, before: &State) -> Outcome {
        let control = control();
        // SAFETY: the control page is mapped, and only this thread, which has the lock, and its signal handler use it.
        // The loaded instruction may store anywhere that its operands say: the campaign keeps them in scratch and guard.
        unsafe {
            (*control).state = before.clone();
            (*control).state.rflags = before.rflags & 0x24_0CD5 | 0x202;
            let (code, data) = self.mode.selectors();
            let base = self.mode.bases().0;
            (*control).data = data.into();
            (*control).exit = nvsim_native_exit as *const () as u64;
            (*control).entry = (CODE - base) as u32;
            (*control).entry_cs = code;
            (*control).signalled = 0;
            (*control).wide = u64::from(std::arch::is_x86_feature_detected!("avx"));
            nvsim_native_enter();
            let mut state = (*control).state.clone();
            state.rip = state.rip.wrapping_add(base);
            let mut fault = None;
            if (*control).signalled == 0 {
                state.rip = CODE + self.len;
            } else if (*control).vector == 3 && state.rip != CODE + 1 {
                // INT3 of the page, where a branch went.
                state.rip -= 1;
            } else if state.rip == CODE || state.rip == CODE + self.len {
                let vector = (*control).vector as u8;
                let address = (vector == 14).then_some((*control).address);
                fault = Some(Fault { vector, code: (*control).code, address });
            }
            Outcome { state, fault }
        }
    }
}

/// `jmp qword ptr [slot]`
fn control_slot(offset: usize) -> [u8; 7] {
    let mut code = [0xFF, 0x24, 0x25, 0, 0, 0, 0];
    code[3..].copy_from_slice(&(CONTROL as u32 + offset as u32).to_le_bytes());
    code
}

fn map(address: u64, len: usize, protection: i32) {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE | libc::MAP_NORESERVE;
    // SAFETY: a new mapping that replaces none.
    let at = unsafe { libc::mmap(address as *mut libc::c_void, len, protection, flags, -1, 0) };
    assert_eq!(at as u64, address, "mmap: {}", std::io::Error::last_os_error());
}

fn protect(address: u64, len: usize, protection: i32) {
    // SAFETY: only ever called on this file's own mappings.
    let result = unsafe { libc::mprotect(address as *mut libc::c_void, len, protection) };
    assert_eq!(result, 0, "mprotect: {}", std::io::Error::last_os_error());
}

/// Makes a 16-bit segment of the local descriptor table.
fn describe(entry: u32, base: u64, limit: u32, code: bool) {
    const USEABLE: u32 = 1 << 6;
    const CODE: u32 = 2 << 1;
    let description = [entry, base as u32, limit, if code { CODE | USEABLE } else { USEABLE }];
    // SAFETY: the kernel reads a `user_desc`, which is these four words.
    let result = unsafe { libc::syscall(libc::SYS_modify_ldt, 0x11, &raw const description, 16) };
    assert_eq!(result, 0, "modify_ldt: {}", std::io::Error::last_os_error());
}

fn signal_stack() {
    let len = 64 << 10;
    let stack = Box::leak(vec![0_u8; len].into_boxed_slice());
    let stack = libc::stack_t { ss_sp: stack.as_mut_ptr().cast(), ss_flags: 0, ss_size: len };
    // SAFETY: the stack lives as long as the process.
    let result = unsafe { libc::sigaltstack(&raw const stack, std::ptr::null_mut()) };
    assert_eq!(result, 0, "sigaltstack: {}", std::io::Error::last_os_error());
}

fn catch_signals() {
    for signal in [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP] {
        // SAFETY: `handler` only touches its context and the control page.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            assert_eq!(libc::sigaction(signal, &raw const action, std::ptr::null_mut()), 0);
        }
    }
}

extern "C" fn handler(signal: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    const ORDER: [i32; 16] = [
        libc::REG_RAX,
        libc::REG_RCX,
        libc::REG_RDX,
        libc::REG_RBX,
        libc::REG_RSP,
        libc::REG_RBP,
        libc::REG_RSI,
        libc::REG_RDI,
        libc::REG_R8,
        libc::REG_R9,
        libc::REG_R10,
        libc::REG_R11,
        libc::REG_R12,
        libc::REG_R13,
        libc::REG_R14,
        libc::REG_R15,
    ];
    // SAFETY: the kernel gives a valid context; the control page is mapped before the handler is installed. FS is never
    // changed by a test, so that calls into libc work.
    unsafe {
        let control = control();
        if (*control).armed == 0 {
            libc::signal(signal, libc::SIG_DFL);
            return;
        }
        let machine = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext;
        let regs = &mut machine.gregs;
        let state = &raw mut (*control).state;
        for (n, reg) in ORDER.iter().enumerate() {
            (*state).gpr[n] = regs[*reg as usize] as u64;
        }
        (*state).rip = regs[libc::REG_RIP as usize] as u64;
        (*state).rflags = regs[libc::REG_EFL as usize] as u64;
        let fpregs = machine.fpregs.cast::<u8>();
        std::ptr::copy_nonoverlapping(fpregs, (&raw mut (*state).fx).cast(), 512);
        if (*control).wide != 0 {
            // The rest of an XSAVE area: in its header, that AVX state is there; behind it, that state.
            let live = fpregs.add(512).cast::<u64>().read() & 4 != 0;
            (*state).upper = [0; 16];
            if live {
                std::ptr::copy_nonoverlapping(fpregs.add(576), (&raw mut (*state).upper).cast(), 256);
            }
        }
        (*control).signalled = 1;
        (*control).vector = regs[libc::REG_TRAPNO as usize] as u32;
        (*control).code = regs[libc::REG_ERR as usize] as u32;
        (*control).address = regs[libc::REG_CR2 as usize] as u64;
        regs[libc::REG_RIP as usize] = nvsim_native_resume as *const () as i64;
        regs[libc::REG_RSP as usize] = (*control).host_rsp as i64;
        regs[libc::REG_EFL as usize] = 0x202;
        let selectors = &mut regs[libc::REG_CSGSFS as usize];
        let (code, data) = Mode::Long.selectors();
        *selectors = *selectors & 0xFFFF_FFFF_0000 | i64::from(code) | i64::from(data) << 48;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_and_flags_go_in_and_out() {
        let mut native = Native::take();
        let mut state = State::default();
        (state.gpr[0], state.gpr[1]) = (0xFFFF_FFFF_FFFF_FFFF, 1);
        native.load(Mode::Long, &[0x48, 0x01, 0xC8]);
        let after = native.run(&state);
        assert_eq!((after.fault, after.state.gpr[0], after.state.rip), (None, 0, CODE + 3));
        assert_eq!(after.state.rflags & 0x8D5, 0x55);
    }

    #[test]
    fn faults_are_seen_with_their_address() {
        let mut native = Native::take();
        let mut state = State::default();
        state.gpr[3] = SCRATCH + SCRATCH_LEN as u64 - 2;
        native.load(Mode::Long, &[0x89, 0x03]);
        let fault = native.run(&state).fault;
        assert_eq!(fault, Some(Fault { vector: 14, code: 6, address: Some(SCRATCH + SCRATCH_LEN as u64) }));
        native.load(Mode::Long, &[0xF7, 0xF1]);
        assert_eq!(native.run(&state).fault, Some(Fault { vector: 0, code: 0, address: None }));
        native.load(Mode::Long, &[0xF4]);
        assert_eq!(native.run(&state).fault, Some(Fault { vector: 13, code: 0, address: None }));
    }

    #[test]
    fn runs_code_of_32_bits() {
        let mut native = Native::take();
        let mut state = State::default();
        state.gpr[0] = 0x99;
        state.gpr[4] = SCRATCH + 0x100;
        native.load(Mode::Protected32, &[0x60]);
        let after = native.run(&state);
        assert_eq!((after.fault, after.state.gpr[4]), (None, SCRATCH + 0xE0));
        assert_eq!(native.scratch()[0xFC], 0x99);
        native.load(Mode::Protected32, &[0xD4, 0x00]);
        assert_eq!(native.run(&state).fault, Some(Fault { vector: 0, code: 0, address: None }));
    }

    #[test]
    fn runs_code_of_16_bits() {
        let mut native = Native::take();
        let mut state = State::default();
        (state.gpr[0], state.gpr[3], state.gpr[4]) = (0x1234_5678, 0x1FFE, 0x100);
        native.load(Mode::Protected16, &[0x89, 0x07]);
        assert_eq!(native.run(&state).fault, None);
        assert_eq!(native.scratch()[0x1FFE..], [0x78, 0x56]);
        state.gpr[3] = 0x1FFF;
        let after = native.run(&state);
        assert_eq!(after.fault, Some(Fault { vector: 13, code: 0, address: None }));
        assert_eq!(after.state.rip, CODE);
        native.load(Mode::Protected16, &[0x50]);
        let after = native.run(&state);
        assert_eq!((after.fault, after.state.gpr[4], after.state.rip), (None, 0xFE, CODE + 1));
    }

    #[test]
    fn branches_end_at_their_target() {
        let mut native = Native::take();
        native.load(Mode::Long, &[0xEB, 0x40]);
        let after = native.run(&State::default());
        assert_eq!((after.fault, after.state.rip), (None, CODE + 0x42));
    }
}
