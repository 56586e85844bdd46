"""The system calls of the journal's native thread, as C; only _journal.pyx cimports this.

Each gives 0 or more, or -errno; none is cut short by a signal.
"""

from libc.stdint cimport int64_t, uint64_t

cdef extern from *:
    """
    #include <errno.h>
    #include <fcntl.h>
    #include <limits.h>
    #include <pthread.h>
    #include <signal.h>
    #include <stdint.h>
    #include <string.h>
    #include <sys/mman.h>
    #include <sys/types.h>
    #include <sys/uio.h>
    #include <unistd.h>
    #ifdef __linux__
    #include <sys/eventfd.h>
    #include <sys/resource.h>
    #include <sys/syscall.h>
    #endif

    /* --- the kernel ------------------------------------------------------------------------------- */

    #ifndef IOV_MAX
    #define IOV_MAX 1024
    #endif

    static ssize_t kernel_write(int fd, const struct iovec *parts, int count, off_t offset) {
        ssize_t n;
        do
            n = pwritev(fd, parts, count, offset);
        while (n < 0 && errno == EINTR);
        return n < 0 ? -errno : n;
    }

    static int kernel_sync(int fd) {
        int n;
        do
    #ifdef __APPLE__
            n = fcntl(fd, F_FULLFSYNC);         /* fsync there leaves it in the disk's cache */
    #else
            n = fdatasync(fd);
    #endif
        while (n < 0 && errno == EINTR);
        return n < 0 ? -errno : 0;
    }

    /* fds[0] becomes readable when fds[1] is rung. */
    static int bell_open(int fds[2]) {
    #ifdef __linux__
        fds[0] = fds[1] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        return fds[0] < 0 ? -1 : 0;
    #else
        int i;
        if (pipe(fds) < 0)
            return -1;
        for (i = 0; i < 2; i++) {
            fcntl(fds[i], F_SETFD, FD_CLOEXEC);
            fcntl(fds[i], F_SETFL, O_NONBLOCK);
        }
        return 0;
    #endif
    }
    static void bell_ring(int fd) {
        uint64_t one = 1;
        ssize_t n;
        do
            n = write(fd, &one, sizeof one);
        while (n < 0 && errno == EINTR);        /* EAGAIN: it has been rung and nobody came yet */
    }
    static void bell_quiet(int fd) {
        uint64_t rung[8];
        while (read(fd, rung, sizeof rung) == (ssize_t)sizeof rung) {}
    }
    static void bell_close(int fds[2]) {
        if (fds[0] >= 0)
            close(fds[0]);
        if (fds[1] >= 0 && fds[1] != fds[0])
            close(fds[1]);
        fds[0] = fds[1] = -1;
    }

    static int descriptor_copy(int fd) { return fcntl(fd, F_DUPFD_CLOEXEC, 0); }

    /* As top and perf show it. */
    static void thread_name(void) {
    #ifdef __linux__
        pthread_setname_np(pthread_self(), "journal");
    #endif
    }

    /*
     * The calling thread goes on for so long before it is another's turn, and so comes to its own turn sooner when
     * it is woken up: Linux 6.12 and later take that from who has no special right, and 100 us is the least.  Else
     * it waits for the slice of whoever runs, 3 ms, at each of a sync's three wake-ups.  Older kernels ignore it, and
     * where the call is refused nothing is lost but that.
     */
    static void thread_slice(uint64_t slice_ns) {
    #if defined(__linux__) && defined(SYS_sched_setattr)
        struct {
            uint32_t size, policy;
            uint64_t flags;
            int32_t nice;
            uint32_t priority;
            uint64_t runtime, deadline, period;
        } attributes = {48, 0, 0, getpriority(PRIO_PROCESS, 0), 0, slice_ns, 0, 0};
        (void)syscall(SYS_sched_setattr, 0, &attributes, 0);
    #else
        (void)slice_ns;
    #endif
    }

    /* Signals are the loop's. */
    static int thread_start(pthread_t *thread, void *(*body)(void *), void *argument) {
        sigset_t all, before;
        int result;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        result = pthread_create(thread, NULL, body, argument);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        return result;
    }

    static inline uint64_t load_acquire(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
    static inline void store_release(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
    static inline uint64_t load_relaxed(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
    static inline void store_relaxed(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELAXED); }
    static inline uint64_t exchange_ordered(uint64_t *p, uint64_t v) {
        return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST);
    }
    static inline void fence_acquire_(void) { __atomic_thread_fence(__ATOMIC_ACQUIRE); }
    static inline void fence_release_(void) { __atomic_thread_fence(__ATOMIC_RELEASE); }

    static void *shared_map(size_t size) {
        void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        return p == MAP_FAILED ? NULL : p;
    }
    """
    enum: IOV_MAX
    enum: EIO
    struct iovec:
        void *iov_base
        size_t iov_len
    ctypedef struct pthread_t:
        pass
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass
    int pthread_mutex_init(pthread_mutex_t *mutex, void *attributes) nogil
    int pthread_mutex_lock(pthread_mutex_t *mutex) nogil
    int pthread_mutex_unlock(pthread_mutex_t *mutex) nogil
    int pthread_mutex_destroy(pthread_mutex_t *mutex) nogil
    int pthread_cond_init(pthread_cond_t *condition, void *attributes) nogil
    int pthread_cond_wait(pthread_cond_t *condition, pthread_mutex_t *mutex) nogil
    int pthread_cond_signal(pthread_cond_t *condition) nogil
    int pthread_cond_destroy(pthread_cond_t *condition) nogil
    int pthread_join(pthread_t thread, void **result) nogil
    int thread_start(pthread_t *thread, void *(*body)(void *) noexcept nogil, void *argument) nogil
    void thread_name() nogil
    void thread_slice(uint64_t slice_ns) nogil
    Py_ssize_t kernel_write(int fd, const iovec *parts, int count, int64_t offset) nogil
    int kernel_sync(int fd) nogil
    int descriptor_copy(int fd)
    int close_descriptor "close"(int fd)
    int bell_open(int *fds)
    void bell_ring(int fd) nogil
    void bell_quiet(int fd)
    void bell_close(int *fds)
    uint64_t load_acquire(const uint64_t *p) nogil
    void store_release(uint64_t *p, uint64_t v) nogil
    uint64_t load_relaxed(const uint64_t *p) nogil
    void store_relaxed(uint64_t *p, uint64_t v) nogil
    uint64_t exchange_ordered(uint64_t *p, uint64_t v) nogil
    void fence_acquire_() nogil
    void fence_release_() nogil
    void *shared_map(size_t size) nogil
    int munmap(void *address, size_t size) nogil
