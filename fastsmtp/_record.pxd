"""A record as it stands in a segment, and its checksum, for who writes and who reads.

Each module that uses crc_add calls crc_init when it is imported: the tables are its own.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>
    #if defined(__x86_64__)
    #include <nmmintrin.h>
    #elif defined(__ARM_FEATURE_CRC32)
    #include <arm_acle.h>
    #endif

    /* The format is little-endian, and so is every machine that we are built for. */
    #if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
    #error "the journal's format is little-endian"
    #endif

    /* --- CRC32C (Castagnoli, reflected 0x82f63b78) ------------------------------------------------ */

    static uint32_t crc_table[8][256];

    static inline void crc_make_table(void) {
        int i, j;
        for (i = 0; i < 256; i++) {
            uint32_t c = (uint32_t)i;
            for (j = 0; j < 8; j++)
                c = c & 1 ? (c >> 1) ^ 0x82f63b78u : c >> 1;
            crc_table[0][i] = c;
        }
        for (i = 0; i < 256; i++)
            for (j = 1; j < 8; j++)
                crc_table[j][i] = (crc_table[j - 1][i] >> 8) ^ crc_table[0][crc_table[j - 1][i] & 255];
    }

    static inline uint32_t crc_by_table(uint32_t c, const unsigned char *p, size_t n) {
        for (; n >= 8; n -= 8, p += 8) {
            uint32_t low, high;
            memcpy(&low, p, 4);
            memcpy(&high, p + 4, 4);
            low ^= c;
            c = crc_table[7][low & 255] ^ crc_table[6][low >> 8 & 255] ^ crc_table[5][low >> 16 & 255]
              ^ crc_table[4][low >> 24] ^ crc_table[3][high & 255] ^ crc_table[2][high >> 8 & 255]
              ^ crc_table[1][high >> 16 & 255] ^ crc_table[0][high >> 24];
        }
        for (; n; n--)
            c = (c >> 8) ^ crc_table[0][(c ^ *p++) & 255];
        return c;
    }

    #if defined(__x86_64__)
    __attribute__((target("sse4.2"), unused))
    static uint32_t crc_by_machine(uint32_t c, const unsigned char *p, size_t n) {
        uint64_t wide = c, word;
        for (; n >= 8; n -= 8, p += 8) {
            memcpy(&word, p, 8);
            wide = _mm_crc32_u64(wide, word);
        }
        c = (uint32_t)wide;
        for (; n; n--)
            c = _mm_crc32_u8(c, *p++);
        return c;
    }
    static inline int crc_has_machine(void) { return __builtin_cpu_supports("sse4.2"); }
    #elif defined(__ARM_FEATURE_CRC32)
    static inline uint32_t crc_by_machine(uint32_t c, const unsigned char *p, size_t n) {
        uint64_t word;
        for (; n >= 8; n -= 8, p += 8) {
            memcpy(&word, p, 8);
            c = __crc32cd(c, word);
        }
        for (; n; n--)
            c = __crc32cb(c, *p++);
        return c;
    }
    static inline int crc_has_machine(void) { return 1; }
    #else
    #define crc_by_machine crc_by_table
    static inline int crc_has_machine(void) { return 0; }
    #endif

    static int crc_is_machine;
    static inline void crc_init(void) {
        crc_make_table();
        crc_is_machine = crc_has_machine();
    }
    static inline uint32_t crc_add(uint32_t c, const void *p, size_t n) {
        return crc_is_machine ? crc_by_machine(c, (const unsigned char *)p, n)
                              : crc_by_table(c, (const unsigned char *)p, n);
    }
    """
    void crc_init()
    uint32_t crc_add(uint32_t crc, const void *p, size_t n) nogil
    uint32_t crc_by_table(uint32_t crc, const unsigned char *p, size_t n) nogil

cdef extern from *:
    """
    static const char record_magic[] = "\\x89" "rec";
    """
    const char *MAGIC "record_magic"

cdef enum:
    K_MESSAGE = 1
    K_SEAL = 2
    K_END = 3
    K_DONE = 4
    K_KEPT = 5
    HEADER = 32                 # bytes before a payload
    ALIGN = 8                   # of records
    BLOCK_BYTES = 4096          # of batches
    PAYLOAD_MOST = 16_777_216   # bytes

cdef struct Header:             # as it stands in the file
    uint8_t magic[4]
    uint32_t length
    uint64_t epoch
    uint32_t offset
    uint32_t batch
    uint8_t kind
    uint8_t reserved[3]
    uint32_t crc


cdef inline uint64_t up(uint64_t value, uint64_t unit) noexcept nogil:
    return (value + unit - 1) & ~(unit - 1)
