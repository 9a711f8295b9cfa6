"""What the shop sells, and the few names that make an order go wrong on purpose."""

PRICES = {
    "desk-lamp": 39.90,
    "fountain-pen": 24.50,
    "notebook": 6.80,
    "office-chair": 189.00,
    "paper-clips": 1.95,
    "gold-stapler": 420.00,
}
STOCK = {
    "desk-lamp": 1_000,
    "fountain-pen": 1_000,
    "notebook": 1_000,
    "office-chair": 1_000,
    "paper-clips": 1_000,
    "gold-stapler": 0,
}
SOLD_OUT = "gold-stapler"

GOOD_CARD = "4000-0000-0000-0001"
EMPTY_CARD = "4000-0000-0000-0002"

STEADY_COURIER = "swift"
SHAKY_COURIER = "snail"  # its service fails twice for each order, then answers

DEAD_MAIL_DOMAIN = "@gone.example"
