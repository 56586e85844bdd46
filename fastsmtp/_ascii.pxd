"""Octet classes of the SMTP grammar: one table, one bit a class.

Not here: any scanner.  Rank 1: pure, C only, imports nothing.
A table and not comparisons: atext alone is 20 ranges (RFC 5322 section 3.2.3).
"""

cdef extern from *:
    """
    enum {
        FS_ALPHA = 1,     /* RFC 5234 B.1 */
        FS_DIGIT = 2,
        FS_ATEXT = 4,     /* RFC 5322 3.2.3, without what RFC 6531 adds */
        FS_QTEXT = 8,     /* RFC 5321 4.1.2 qtextSMTP: %d32-33 / %d35-91 / %d93-126 */
        FS_DTEXT = 16,    /* RFC 5321 4.1.3 dcontent: %d33-90 / %d94-126 */
        FS_VALUE = 32,    /* RFC 5321 4.1.2 esmtp-value: %d33-60 / %d62-126 */
        FS_XCHAR = 64,    /* RFC 3461 section 4: %d33-126 without "+" and "=" */
        FS_NAME = 128     /* what we take in a HELO name: VCHAR without RFC 5322 specials but . : [ ] */
    };
    #define FS_LETTER (FS_ALPHA | FS_ATEXT | FS_QTEXT | FS_DTEXT | FS_VALUE | FS_XCHAR | FS_NAME)
    #define FS_NUMBER (FS_DIGIT | FS_ATEXT | FS_QTEXT | FS_DTEXT | FS_VALUE | FS_XCHAR | FS_NAME)
    #define FS_SYMBOL (FS_ATEXT | FS_QTEXT | FS_DTEXT | FS_VALUE | FS_XCHAR | FS_NAME)
    #define FS_OTHER (FS_QTEXT | FS_DTEXT | FS_VALUE | FS_XCHAR)
    static const unsigned char fs_class[256] = {
        ['A' ... 'Z'] = FS_LETTER, ['a' ... 'z'] = FS_LETTER, ['0' ... '9'] = FS_NUMBER,
        ['!'] = FS_SYMBOL, ['#'] = FS_SYMBOL, ['$'] = FS_SYMBOL, ['%'] = FS_SYMBOL, ['&'] = FS_SYMBOL,
        ['\\''] = FS_SYMBOL, ['*'] = FS_SYMBOL, ['-'] = FS_SYMBOL, ['/'] = FS_SYMBOL, ['?'] = FS_SYMBOL,
        ['^'] = FS_SYMBOL, ['_'] = FS_SYMBOL, ['`'] = FS_SYMBOL, ['{'] = FS_SYMBOL, ['|'] = FS_SYMBOL,
        ['}'] = FS_SYMBOL, ['~'] = FS_SYMBOL,
        ['+'] = FS_SYMBOL & ~FS_XCHAR, ['='] = FS_SYMBOL & ~(FS_XCHAR | FS_VALUE),
        ['('] = FS_OTHER, [')'] = FS_OTHER, [','] = FS_OTHER, [';'] = FS_OTHER, ['<'] = FS_OTHER,
        ['>'] = FS_OTHER, ['@'] = FS_OTHER,
        ['.'] = FS_OTHER | FS_NAME, [':'] = FS_OTHER | FS_NAME,
        ['['] = (FS_OTHER & ~FS_DTEXT) | FS_NAME,
        [']'] = (FS_OTHER & ~FS_DTEXT) | FS_NAME,
        ['\\\\'] = FS_VALUE | FS_XCHAR,
        ['"'] = FS_DTEXT | FS_VALUE | FS_XCHAR,
        [' '] = FS_QTEXT,
    };
    """
    const int ALPHA "FS_ALPHA"
    const int DIGIT "FS_DIGIT"
    const int ATEXT "FS_ATEXT"
    const int QTEXT "FS_QTEXT"
    const int DTEXT "FS_DTEXT"
    const int VALUE "FS_VALUE"
    const int XCHAR "FS_XCHAR"
    const int NAME "FS_NAME"
    const unsigned char octet_class "fs_class"[256]


cdef inline bint is_in(char c, int classes) noexcept nogil:
    """Whether the octet is in any of the classes."""
    return octet_class[<unsigned char>c] & classes


cdef inline unsigned char lower(char c) noexcept nogil:
    """The octet, an ASCII capital made small."""
    cdef unsigned char o = <unsigned char>c
    return o + 32 if b'A' <= o <= b'Z' else o


cdef inline unsigned char upper(char c) noexcept nogil:
    """The octet, an ASCII small letter made a capital."""
    cdef unsigned char o = <unsigned char>c
    return o - 32 if b'a' <= o <= b'z' else o


cdef inline bint is_8bit(char c) noexcept nogil:
    """Whether the octet is over 127."""
    return <unsigned char>c > 127


cdef inline bint is_word(const char *p, Py_ssize_t n, const char *word, Py_ssize_t size) noexcept nogil:
    """Whether the n octets at p are the word (given in capitals), in any case of letters."""
    cdef Py_ssize_t i
    if n != size:
        return False
    for i in range(n):
        if upper(p[i]) != <unsigned char>word[i]:
            return False
    return True
