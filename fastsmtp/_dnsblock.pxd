"""The two system calls of the DNS engine, and its watch for forks.

sendmmsg and recvmmsg carry up to DNS_BLOCK packets each; where the system lacks
them (all but Linux) or with one_by_one, plain calls do the same.  Only _dns.pyx
cimports this.
"""

from libc.stdint cimport uint8_t

cdef extern from *:
    """
    #include <errno.h>
    #include <pthread.h>
    #include <string.h>
    #include <sys/socket.h>
    #include <sys/types.h>
    #include <sys/uio.h>

    enum { DNS_BLOCK = 32, DNS_STRIDE = 1536 };

    /* Packets side by side, one every DNS_STRIDE bytes, and what the system wants to know of them. */
    struct dns_block {
        unsigned char bytes[DNS_BLOCK][DNS_STRIDE];
        size_t length[DNS_BLOCK];
        int is_cut[DNS_BLOCK];
        struct iovec part[DNS_BLOCK];
    #ifdef __linux__
        struct mmsghdr header[DNS_BLOCK];
    #endif
    };

    static void dns_block_init(struct dns_block *b) {
        int i;
        for (i = 0; i < DNS_BLOCK; i++) {
            b->part[i].iov_base = b->bytes[i];
            b->part[i].iov_len = DNS_STRIDE;
    #ifdef __linux__
            memset(&b->header[i], 0, sizeof b->header[i]);
            b->header[i].msg_hdr.msg_iov = &b->part[i];
            b->header[i].msg_hdr.msg_iovlen = 1;
    #endif
        }
    }

    /* Send the first count packets of the block; how many left, or -errno when not even the first did. */
    static int dns_send(int fd, struct dns_block *b, int count, int one_by_one) {
        int i, n;
    #ifdef __linux__
        if (!one_by_one) {
            for (i = 0; i < count; i++)
                b->part[i].iov_len = b->length[i];
            do
                n = sendmmsg(fd, b->header, (unsigned)count, MSG_DONTWAIT);
            while (n < 0 && errno == EINTR);
            return n < 0 ? -errno : n;
        }
    #endif
        (void)one_by_one;
        for (i = 0; i < count; i++) {
            do
                n = (int)send(fd, b->bytes[i], b->length[i], MSG_DONTWAIT);
            while (n < 0 && errno == EINTR);
            if (n < 0)
                return i ? i : -errno;
        }
        return count;
    }

    /* Take what has come, at most a block; how many packets, 0 for none, or -errno. */
    static int dns_receive(int fd, struct dns_block *b, int one_by_one) {
        int i;
        struct msghdr one;
        ssize_t size;
    #ifdef __linux__
        if (!one_by_one) {
            int n;
            do
                n = recvmmsg(fd, b->header, DNS_BLOCK, MSG_DONTWAIT, NULL);
            while (n < 0 && errno == EINTR);
            if (n < 0)
                return errno == EAGAIN || errno == EWOULDBLOCK ? 0 : -errno;
            for (i = 0; i < n; i++) {
                b->length[i] = b->header[i].msg_len;
                b->is_cut[i] = b->header[i].msg_hdr.msg_flags & MSG_TRUNC;
            }
            return n;
        }
    #endif
        (void)one_by_one;
        for (i = 0; i < DNS_BLOCK; i++) {
            memset(&one, 0, sizeof one);
            one.msg_iov = &b->part[i];
            one.msg_iovlen = 1;
            do
                size = recvmsg(fd, &one, MSG_DONTWAIT);
            while (size < 0 && errno == EINTR);
            if (size < 0)
                return i || errno == EAGAIN || errno == EWOULDBLOCK ? i : -errno;
            b->length[i] = (size_t)size;
            b->is_cut[i] = one.msg_flags & MSG_TRUNC;
        }
        return i;
    }

    /* Which process this is: a child must not go on with the random bytes that its parent had drawn. */
    static volatile unsigned dns_forks;
    static void dns_forked(void) { dns_forks++; }
    static int dns_watch_forks(void) { return pthread_atfork(NULL, NULL, dns_forked); }
    """
    enum: DNS_BLOCK
    enum: DNS_STRIDE
    struct dns_block:
        uint8_t bytes[DNS_BLOCK][DNS_STRIDE]
        size_t length[DNS_BLOCK]
        int is_cut[DNS_BLOCK]
    void dns_block_init(dns_block *block) nogil
    int dns_send(int fd, dns_block *block, int count, bint one_by_one) nogil
    int dns_receive(int fd, dns_block *block, bint one_by_one) nogil
    unsigned int dns_forks
    int dns_watch_forks()
