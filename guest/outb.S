# outb PORT BYTE: writes the byte to the I/O port, both decimal. Freestanding: Debian's cloud kernel has no /dev/port.
.globl _start
_start:
    mov 16(%rsp), %rsi          # argv[1]
    call number
    mov %eax, %ebx
    mov $173, %eax              # ioperm(port, 1, 1)
    mov %ebx, %edi
    mov $1, %esi
    mov $1, %edx
    syscall
    mov 24(%rsp), %rsi          # argv[2]
    call number
    mov %ebx, %edx
    out %al, (%dx)
    mov $60, %eax               # exit(0)
    xor %edi, %edi
    syscall

# The number at rsi, in eax.
number:
    xor %eax, %eax
1:  movzbl (%rsi), %ecx
    sub $'0', %ecx
    jb 2f
    lea (%rax,%rax,4), %eax
    lea (%rcx,%rax,2), %eax
    inc %rsi
    jmp 1b
2:  ret
