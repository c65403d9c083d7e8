//! rvmm: a lightweight virtual machine monitor on KVM.
