//! The layouts of the interface as lines of text, to be compared with those of C.

use rustai_abi::queue::*;

fn print<T: Wire>() {
    println!("{} SIZE {}", T::C_NAME, T::SIZE);
    for field in T::FIELDS {
        println!("{} {} {}", T::C_NAME, field.name, field.offset);
    }
}

/// Prints the size of each struct and the offset of each of its fields.
pub fn print_all() {
    print::<Job>();
    print::<Tensor>();
    print::<Completion>();
    print::<RingHeader>();
    print::<Query>();
    print::<Setup>();
    print::<BufRegister>();
    print::<BufRelease>();
    print::<Submit>();
    print::<UringSubmit>();
    print::<Wait>();
    print::<Cancel>();
    print::<EventFd>();
    print::<Limits>();
    print::<Stat>();
    print::<Attach>();
    print::<Fetch>();
    print::<Record>();
    print::<BufMap>();
    print::<Progress>();
    print::<Commit>();
    print::<Outcome>();
    print::<Ack>();
    print::<Detach>();
}
