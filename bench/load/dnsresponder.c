/*
 * A DNS responder for measurements: answers every question on loopback at once, many with one system call.
 *
 *     cc -O2 -o dnsresponder dnsresponder.c && ./dnsresponder [SILENT-PERCENT [unlisted]]
 *
 * Prints its UDP port on one line and runs until it is killed or standard input ends.  What it answers:
 *   a name whose first letter is n or N   NXDOMAIN with an SOA (ttl and minimum 300 s)
 *   every other name                      one A record, 127.0.0.2, 300 s, whatever was asked; with "unlisted" as above
 * The question is echoed as it came.  It is no server: names are not looked at any further.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

enum { BLOCK = 64, ROOM = 1024 };

static unsigned char packet[BLOCK][ROOM];
static struct sockaddr_in peer[BLOCK];
static struct iovec part[BLOCK];
static struct mmsghdr header[BLOCK];

static const unsigned char address_record[] = {
    0xC0, 12, 0, 1, 0, 1, 0, 0, 1, 44, 0, 4, 127, 0, 0, 2,
};
static const unsigned char soa_record[] = {
    0, 0, 6, 0, 1, 0, 0, 1, 44, 0, 22, 0, 0, 0, 0, 0, 1, 0, 0, 1, 44, 0, 0, 1, 44, 0, 0, 1, 44, 0, 0, 1, 44,
};

static int is_unlisted;

/* Make the answer where the query stands; its length, or 0 for what is no query. */
static size_t answer(unsigned char *p, size_t n)
{
    size_t at = 12, length;

    if (n < 17 || p[2] & 0x80 || p[4] || p[5] != 1)
        return 0;
    while (at < n && p[at])
        at += p[at] + 1u;
    at += 5;
    if (at > n || at + sizeof soa_record > ROOM)
        return 0;
    p[2] = 0x81;
    memset(p + 6, 0, 6);
    if (is_unlisted || (p[13] | 0x20) == 'n') {
        p[3] = 0x83;
        p[9] = 1;
        length = sizeof soa_record;
        memcpy(p + at, soa_record, length);
    } else {
        p[3] = 0x80;
        p[7] = 1;
        length = sizeof address_record;
        memcpy(p + at, address_record, length);
    }
    return at + length;
}

int main(int argc, char **argv)
{
    int fd = socket(AF_INET, SOCK_DGRAM, 0), size = 4 << 20, silent = argc > 1 ? atoi(argv[1]) : 0;
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof here;

    is_unlisted = argc > 2 && !strcmp(argv[2], "unlisted");
    struct pollfd watch[2] = {{.fd = fd, .events = POLLIN}, {.fd = 0, .events = 0}};

    if (fd < 0 || bind(fd, (struct sockaddr *)&here, sizeof here) < 0 ||
        getsockname(fd, (struct sockaddr *)&here, &length) < 0) {
        perror("dnsresponder");
        return 1;
    }
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
    printf("%d\n", ntohs(here.sin_port));
    fflush(stdout);
    for (;;) {
        int i, n, count = 0;

        for (i = 0; i < BLOCK; i++) {
            part[i].iov_base = packet[i];
            part[i].iov_len = ROOM;
            header[i].msg_hdr = (struct msghdr){
                .msg_name = &peer[i], .msg_namelen = sizeof peer[i], .msg_iov = &part[i], .msg_iovlen = 1};
        }
        n = recvmmsg(fd, header, BLOCK, MSG_WAITFORONE | MSG_DONTWAIT, NULL);
        if (n <= 0) {
            if (poll(watch, 2, -1) > 0 && watch[1].revents)
                return 0;
            continue;
        }
        for (i = 0; i < n; i++) {
            size_t size_bytes = answer(packet[i], header[i].msg_len);

            if (size_bytes == 0 || (silent && rand() % 100 < silent))
                continue;
            part[i].iov_len = size_bytes;
            header[count] = header[i];
            header[count].msg_hdr.msg_iov = &part[i];
            count++;
        }
        if (count)
            sendmmsg(fd, header, (unsigned)count, 0);
    }
}
