"""Lightning callbacks: monitors and guards."""
