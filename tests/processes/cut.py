"""cut.py MOUNT_POINT: cuts an ext4 off as a power cut does. What was not flushed is lost, its log
included; whatever is asked of it afterwards fails, until it is mounted anew."""

import fcntl
import os
import struct
import sys

EXT4_IOC_SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32)
NO_LOG_FLUSH = 2

descriptor = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECTORY)
fcntl.ioctl(descriptor, EXT4_IOC_SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
