/*
 * Preloaded into User-Mode Linux on hosts whose processors have more state than its kernel knows of (Intel's AMX).
 *
 * UML 6.1 keeps 2,696 octets of a process's extended registers: all up to AVX-512 and protection keys. A host with AMX
 * has 11,008 and refuses to set less than all of them (EFAULT), so that the guest dies at its first process. Here the
 * missing rest is added in its initial state; the guest's processes do not use it.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/types.h>
#include <sys/uio.h>

#define NT_X86_XSTATE 0x202               /* linux/elf.h */
#define HEADER 512                        /* of XSAVE's format: where the bitmap of present components is */
#define AMX ((uint64_t)3 << 17)           /* tile configuration and tile data */

typedef long ptrace_t(int, pid_t, void *, void *);
static ptrace_t *next;
static size_t needed;                     /* what the host wants; 0 as long as it was content */
static unsigned char whole[1 << 16] __attribute__((aligned(64)));

__attribute__((constructor)) static void find(void)
{
	next = (ptrace_t *)dlsym(RTLD_NEXT, "ptrace");
}

long ptrace(enum __ptrace_request request, ...)
{
	va_list arguments;
	va_start(arguments, request);
	pid_t pid = va_arg(arguments, pid_t);
	void *address = va_arg(arguments, void *);
	void *data = va_arg(arguments, void *);
	va_end(arguments);

	int sets = request == PTRACE_SETREGSET && (uintptr_t)address == NT_X86_XSTATE;
	if (!sets || !needed) {
		long result = next(request, pid, address, data);
		if (!sets || result != -1 || errno != EFAULT)
			return result;
		struct iovec all = { whole, sizeof whole };
		if (next(PTRACE_GETREGSET, pid, address, &all) == -1)
			return -1;
		needed = all.iov_len;
	}
	const struct iovec *given = data;
	if (given->iov_len >= needed || given->iov_len < HEADER + sizeof(uint64_t))
		return next(request, pid, address, data);
	memcpy(whole, given->iov_base, given->iov_len);
	memset(whole + given->iov_len, 0, needed - given->iov_len);
	uint64_t present;
	memcpy(&present, whole + HEADER, sizeof present);
	present &= ~AMX;
	memcpy(whole + HEADER, &present, sizeof present);
	struct iovec all = { whole, needed };
	return next(request, pid, address, &all);
}
