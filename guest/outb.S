# stamp N: writes the byte N to I/O port 0x3e9, rvmm's boot timer. Freestanding: Debian's cloud kernel has no /dev/port.
.globl _start
_start:
    mov $173, %eax              # ioperm(0x3e9, 1, 1)
    mov $0x3e9, %edi
    mov $1, %esi
    mov $1, %edx
    syscall
    mov 16(%rsp), %rsi          # argv[1]: one digit
    movzbl (%rsi), %eax
    sub $'0', %al
    mov $0x3e9, %edx
    out %al, (%dx)
    mov $60, %eax               # exit(0)
    xor %edi, %edi
    syscall
