/*
 * What the kernel takes for a DNS query: the system calls of the engine and nothing else.
 *
 *     dnsfloor PORT BATCHES-IN-FLIGHT QUERIES
 *
 * Batches of 8 equal queries leave by sendmmsg from one of 8 connected sockets, answers are taken by recvmmsg when
 * epoll says so; nothing is read in them.  Prints CPU microseconds a query, user and system of this process.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>

enum { SOCKETS = 8, BATCH = 8, BLOCK = 32, ROOM = 1536 };

static const unsigned char query[] =
    "\0\1\1\0\0\1\0\0\0\0\0\1" "\1a\3" "123\0011\0010\5zone1\7example\3org\0" "\0\1\0\1" "\0\0\51\4\320\0\0\0\0\0";

static unsigned char taken[BLOCK][ROOM];
static struct mmsghdr out[BATCH], in[BLOCK];
static struct iovec out_part = {(void *)query, sizeof query}, in_part[BLOCK];

int main(int argc, char **argv)
{
    int fds[SOCKETS], poller = epoll_create1(0), i, size = 1 << 20;
    long in_flight = argc > 2 ? atol(argv[2]) * BATCH : 0, total = argc > 3 ? atol(argv[3]) : 0, sent = 0, got = 0;
    struct sockaddr_in there = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct rusage used;

    if (in_flight <= 0 || total <= 0)
        return 2;
    there.sin_port = htons((unsigned short)atoi(argv[1]));
    for (i = 0; i < SOCKETS; i++) {
        struct epoll_event event = {.events = EPOLLIN};

        event.data.fd = fds[i] = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
        setsockopt(fds[i], SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
        if (connect(fds[i], (struct sockaddr *)&there, sizeof there) < 0)
            return 1;
        epoll_ctl(poller, EPOLL_CTL_ADD, fds[i], &event);
    }
    for (i = 0; i < BATCH; i++)
        out[i].msg_hdr = (struct msghdr){.msg_iov = &out_part, .msg_iovlen = 1};
    for (i = 0; i < BLOCK; i++) {
        in_part[i] = (struct iovec){taken[i], ROOM};
        in[i].msg_hdr = (struct msghdr){.msg_iov = &in_part[i], .msg_iovlen = 1};
    }
    while (got < total) {
        struct epoll_event events[SOCKETS];
        int ready;

        while (sent < total && sent - got <= in_flight - BATCH) {
            if (sendmmsg(fds[rand() % SOCKETS], out, BATCH, 0) != BATCH)
                return 1;
            sent += BATCH;
        }
        ready = epoll_wait(poller, events, SOCKETS, 1000);
        if (ready <= 0)
            return 1;                /* a packet was lost: no measurement */
        for (i = 0; i < ready; i++) {
            int n = recvmmsg(events[i].data.fd, in, BLOCK, MSG_DONTWAIT, NULL);

            got += n > 0 ? n : 0;
        }
    }
    getrusage(RUSAGE_SELF, &used);
    printf("%.3f\n", ((used.ru_utime.tv_sec + used.ru_stime.tv_sec) * 1e6 + used.ru_utime.tv_usec + used.ru_stime.tv_usec) / total);
    return 0;
}
