"""A QUIC client that shares no line with ours (aioquic): it shakes hands with the core by a key that is a WireGuard key as well,
sends echo requests as packets in DATAGRAM frames (RFC 9221), and says what comes back.

An Ed25519 key is made of a seed of 32 octets: the first half of its SHA-512 is a scalar, which is an X25519 private key, too. So
the seed's WireGuard key and its signing key are the same point, in two forms (RFC 7748, section 4.1).

Usage: client.py ADDRESS PORT SEED(hex) FILE-OF-THE-CORE'S-PRIVATE-KEY OWN-ADDRESS OTHER-ADDRESS
Ends with one line: "echoed N of 20, numbers in order" or "refused: CODE REASON".
"""

import asyncio
import base64
import datetime
import ipaddress
import ssl
import struct
import sys

from aioquic.asyncio import QuicConnectionProtocol, connect
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ConnectionTerminated, DatagramFrameReceived
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

ECHOES = 20
P = 2**255 - 19


def certificate(key):
    """A certificate of the key by itself. Nobody reads its names or dates: the core knows the key."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "aioquic")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    begin = datetime.datetime(2020, 1, 1)
    builder = builder.serial_number(1).not_valid_before(begin).not_valid_after(begin + datetime.timedelta(days=36500))
    return builder.sign(key, None)


def signing_key_of(wireguard):
    """The Ed25519 form of an X25519 public key, with the sign bit 0: y = (u - 1) / (u + 1)."""
    u = int.from_bytes(wireguard, "little")
    return ((u - 1) * pow(u + 1, -1, P) % P).to_bytes(32, "little")


def checksum(octets):
    """RFC 1071."""
    total = sum(struct.unpack(f"!{len(octets) // 2}H", octets))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def echo_request(source, destination, number):
    """RFC 792 in RFC 791."""
    body = struct.pack("!BBHHH", 8, 0, 0, 7, number) + bytes(56)
    body = body[:2] + struct.pack("!H", checksum(body)) + body[4:]
    header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(body), number, 0, 64, 1, 0, source.packed, destination.packed)
    return header[:10] + struct.pack("!H", checksum(header)) + header[12:] + body


class Client(QuicConnectionProtocol):
    """Takes what comes."""

    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        self.echoes, self.numbers, self.ended = set(), [], None

    def quic_event_received(self, event):
        super().quic_event_received(event)
        if isinstance(event, ConnectionTerminated):
            self.ended = event
        if isinstance(event, DatagramFrameReceived) and len(event.data) >= 4:
            packet, (number,) = event.data[:-4], struct.unpack("!I", event.data[-4:])
            self.numbers.append(number)
            # An echo reply of ours, whole.
            if len(packet) == 84 and packet[9] == 1 and packet[20] == 0 and checksum(packet[20:]) == 0:
                self.echoes.add(struct.unpack("!H", packet[26:28])[0])


async def main(address, port, seed, core_key_file, own, other):
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(seed))
    with open(core_key_file, encoding="ascii") as file:
        core = X25519PrivateKey.from_private_bytes(base64.b64decode(file.read()))
    core = core.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    own, other = ipaddress.ip_address(own), ipaddress.ip_address(other)
    configuration = QuicConfiguration(
        is_client=True,
        alpn_protocols=["msp/1"],
        # The certificate is checked below, against the key that is known.
        verify_mode=ssl.CERT_NONE,
        max_datagram_frame_size=65535,
        certificate=certificate(key),
        private_key=key,
        server_name="msp-core",
        idle_timeout=20.0,
    )
    client = None
    try:
        async with connect(address, int(port), configuration=configuration, create_protocol=Client) as client:
            # aioquic has no public way to the certificate of the other end.
            shown = client._quic.tls._peer_certificate.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
            if shown != signing_key_of(core):
                return "refused by us: the core shows another key"
            for number in range(ECHOES):
                if client.ended:
                    break
                packet = echo_request(own, other, number)
                client._quic.send_datagram_frame(packet + struct.pack("!I", number))
                client.transmit()
                await asyncio.sleep(0.1)
            await asyncio.sleep(0.5)
    except ConnectionError:
        pass
    if client is None or client.ended and not client.echoes:
        ended = getattr(client, "ended", None)
        return f"refused: {ended.error_code:#x} {ended.reason_phrase}" if ended else "refused: no handshake"
    order = "numbers in order" if client.numbers == sorted(set(client.numbers)) else f"numbers {client.numbers}"
    return f"echoed {len(client.echoes)} of {ECHOES}, {order}"


print(asyncio.run(main(*sys.argv[1:])), flush=True)
