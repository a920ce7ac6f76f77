// SPDX-License-Identifier: Apache-2.0
// ChaCha20-Poly1305 (RFC 8439) without associated data for processors with AVX-512 IFMA: what a WireGuard packet needs,
// 16 ChaCha20 blocks and 8 Poly1305 blocks at a time. Constant time: no branch and no address depends on secrets.
// Everything it makes is compared with other implementations by tests and, once per process, by a self-test.
#ifndef CCHAPOLY_H
#define CCHAPOLY_H
#include <stddef.h>
#include <stdint.h>

// Whether processor and system have all that is needed. Nothing else may be called if not.
int cchapoly_is_possible(void);
// Encrypts `length` bytes; `output` (which is `input` or does not overlap it) has room for 16 bytes more: the tag. The
// nonce is four zero bytes and `counter`, little endian.
void cchapoly_seal(const uint8_t key[32], uint64_t counter, const uint8_t *input, uint8_t *output, size_t length);
// Checks the tag behind `length` bytes and decrypts them in place; 1 if right. Else 0, and the bytes stay as they are.
int cchapoly_open(const uint8_t key[32], uint64_t counter, uint8_t *text, size_t length);

#endif
